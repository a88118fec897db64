"""A table of questions and a model are enough for a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config.own_questions import study_of_questions
from experiments.sample.models import has_chat_template
from semcal import LanguageModel, UserError


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my questions.csv").write_text("Question;Answer\nWho?;one\nWhere?;two\n", encoding="utf-8-sig")
    return Path("my questions.csv")


def test_a_model_without_chat_template_is_asked_by_few_shot_prompts(table, checkpoint):
    study = study_of_questions(table, str(checkpoint), has_chat_template, ["sampling.m=4"])
    assert study.folder == Path("runs") / study.name
    assert (study.models[0].prompt, study.datasets[0].kind, study.styles) == ("few-shot", "csv", ["concise"])
    assert study.sampling.m == 4
    assert (study.folder / "study.yaml").is_file()
    assert study_of_questions(table, str(checkpoint), has_chat_template).name == study.name  # again, as after a stop


def test_a_model_with_a_chat_template_is_asked_through_it(table, checkpoint, tmp_path):
    model = LanguageModel.load(checkpoint, device="cpu")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.model.save_pretrained(tmp_path / "tuned")
    model.tokenizer.save_pretrained(tmp_path / "tuned")
    assert study_of_questions(table, str(tmp_path / "tuned"), has_chat_template).models[0].prompt == "chat"


def test_what_cannot_be_asked_is_said_in_one_line(table, checkpoint):
    with pytest.raises(UserError, match=r"no file nowhere\.csv; expected a table of questions"):
        study_of_questions(Path("nowhere.csv"), str(checkpoint), has_chat_template)
    with pytest.raises(UserError, match=r"no folder \./nowhere"):
        study_of_questions(table, "./nowhere", has_chat_template)
    with pytest.raises(UserError, match="is a server, which needs more settings"):
        study_of_questions(table, "http://localhost:1/v1", has_chat_template)
    assert not Path("runs").exists()


def test_another_table_of_that_name_is_not_mixed_in(table, checkpoint):
    study_of_questions(table, str(checkpoint), has_chat_template)
    Path("other").mkdir()
    with pytest.raises(UserError, match=r"study\.yaml asks something else"):
        study_of_questions(table.rename(Path("other") / table.name), str(checkpoint), has_chat_template)
