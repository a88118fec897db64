"""`semcal tilt`: adapters learn from one half of the questions, and are asked the other; one learns from all."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.config.run_folder import stored_cell
from experiments.pipeline.progress import Reporter
from experiments.pipeline.tilt_run import tilt_run
from experiments.train.gold_adapter import train_on_gold
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.load_dataset import read_table
from semcal.runs.run import Run
from tests.experiments.conftest import run_dict
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture
def run(tmp_path, study_dict):
    return run_dict(tmp_path, study_dict | {"probes": {"enabled": False, "folds": 3}})[0]


class Heard(Reporter):
    """Keeps what was said of every stage."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def stage(self, cell, what) -> None:  # noqa: ARG002
        self.words.append(what)


def gold_logprobs(model, run, ids):
    """Mean log-probability of the gold answers' tokens after their prompts."""
    questions, found = run.questions(), []
    for row in np.flatnonzero(questions["id"].isin(ids)):
        prompt, answer = model.encode(questions["prompt"].iloc[row]), list(questions["written_ids"].iloc[row])
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        at = torch.arange(len(answer)) - 1 + len(prompt)
        found.append(float(logits[at, torch.as_tensor(answer)].sum()))
    return np.mean(found)


def test_every_question_is_asked_of_an_adapter_that_never_saw_its_group(monkeypatch, capsys, run):
    before = {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}
    code, said, err = semcal(monkeypatch, capsys, "tilt", run.folder)
    assert code == 0, err
    for word in ("as sampled", "temperature", "tilted model", "adapter"):
        assert word in said, word
    assert {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()} == before
    folder = run.folder / "looks/tilt"
    table = pd.read_csv(folder / "remedies.csv").set_index("remedy")
    assert table.loc["as sampled", "smece"] == pytest.approx(run.calibration()["smece"])
    asked = [set(Run(folder / half / "run").questions()["id"]) for half in ("half-1", "half-2")]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == set(run.questions()["id"])
    groups = run.questions().set_index("id")["group"]
    assert not set(groups[sorted(asked[0])]) & set(groups[sorted(asked[1])])

    plain = LanguageModel.load(stored_cell(run).model.path)
    for own, other, name in ((*asked, "half-1"), (*asked[::-1], "half-2"), (set(), asked[0] | asked[1], "all")):
        adapter = folder / name / "adapter" if own else run.folder / "adapter"
        tilted = LanguageModel.load(str(adapter))
        learnt = json.loads((folder / name / "learnt.json").read_text())
        assert learnt["questions"] + learnt["validated"] == len(other)
        assert {question.id for question in read_table(adapter / "trained.jsonl")} == other
        assert min(learnt["validation"]) < learnt["validation"][0]
        assert gold_logprobs(tilted, run, other) > gold_logprobs(plain, run, other) + 1


def test_what_is_finished_is_not_made_again(monkeypatch, run):
    cell = stored_cell(run)
    first = tilt_run(cell, run, Reporter())

    def never(*_, **__):
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr("experiments.pipeline.tilt_run.train_on_gold", never)
    monkeypatch.setattr("experiments.pipeline.tilt_run.sample_cell", never)
    again = tilt_run(cell, run, Reporter())
    assert again.after.distributions == first.after.distributions
    assert again.learnt == first.learnt

    monkeypatch.setattr("experiments.pipeline.tilt_run.train_on_gold", train_on_gold)
    shutil.rmtree(first.whole)
    tilt_run(cell, run, Reporter())  # only what was deleted
    assert (first.whole / "adapter_model.safetensors").is_file()


@pytest.fixture
def uncaptured(tmp_path, study_dict):
    """A run without activations, whose folder holds no token ids of prompts; and its study."""
    study = study_dict | {"probes": {"enabled": False, "folds": 3}, "capture": {"positions": []}}
    return run_dict(tmp_path, study)[0], study


def test_a_run_without_activations_and_what_its_adapter_may_be_asked(tmp_path, uncaptured):
    run, study = uncaptured
    assert not (run.folder / "prompts.parquet").exists()
    heard = Heard()
    found = tilt_run(stored_cell(run), run, heard)
    assert found.before.questions == found.after.questions

    for adapter, known in ((found.adapters[0], 24), (found.whole, 48)):
        tilted = {"models": [{"path": str(adapter), "name": "tilted", "device": "cpu"}], "name": "other"}
        with pytest.raises(UserError) as refused:
            run_dict(tmp_path, study | tilted)
        assert f"tilted was trained on {known} of the 48 questions" in str(refused.value)
        assert f"exclude: {adapter}/trained.jsonl" in str(refused.value)

    for said in ("the first half", "the second half", "all questions"):
        told = [words for words in heard.words if words.startswith(f"learning from {said}: ")]
        far = [re.search(r"(\d+) of (\d+)", words).groups() for words in told]
        assert [int(done) for done, _ in far] == sorted(int(done) for done, _ in far)
        assert {of for _, of in far} == {far[0][1]}
        assert int(far[-1][0]) <= int(far[-1][1])
        assert "validating" in told[0]


def test_another_prompt_than_the_run_asked_is_no_prompt_to_learn_from(monkeypatch, run):
    questions = run.questions().assign(prompt_hash="0" * 16)
    monkeypatch.setattr(Run, "questions", lambda _: questions)
    with pytest.raises(UserError, match=r"the prompt of question .* is not the one that was asked"):
        tilt_run(stored_cell(run), run, Reporter())


def test_of_several_runs_those_that_allow_no_tilt_are_left_out(monkeypatch, capsys, run):
    other = shutil.copytree(run.folder, run.folder.parent / "other")

    def tilted(cell, one, reporter):
        if one.folder.name == "other":
            raise UserError("no gold here")
        return tilt_run(cell, one, reporter)

    monkeypatch.setattr("experiments.pipeline.tilt_run.tilt_run", tilted)
    code, said, err = semcal(monkeypatch, capsys, "tilt", other, run.folder)
    assert code == 0, err
    assert "left out: no gold here" in said
    assert (run.folder / "looks/tilt/remedies.csv").is_file()
    assert not (other / "looks").exists()
    code, said, err = semcal(monkeypatch, capsys, "tilt", other)
    assert code == 2
    assert "no gold here" in err


def test_questions_without_gold_as_the_style_writes_it(monkeypatch, run):
    questions = run.questions().assign(written_ids=[[] for _ in range(48)])
    monkeypatch.setattr(Run, "questions", lambda _: questions)
    with pytest.raises(UserError, match="only 0 of 48 questions have a gold answer as the style concise writes it"):
        tilt_run(stored_cell(run), run, Reporter())


def test_halves_with_gold_in_one_group_alone(monkeypatch, run):
    questions = run.questions()
    few = set(sorted(set(questions["group"]))[:3])
    written = [
        ids if group in few else [] for ids, group in zip(questions["written_ids"], questions["group"], strict=True)
    ]
    monkeypatch.setattr(Run, "questions", lambda _: questions.assign(written_ids=written))
    with pytest.raises(
        UserError, match=r"in 3 of \d+ groups; .* each half of the questions, which needs two groups with gold"
    ):
        tilt_run(stored_cell(run), run, Reporter())


def test_a_run_of_one_group(tmp_path, study_dict):
    few = {"datasets": [study_dict["datasets"][0] | {"n": 1}], "probes": {"enabled": False}}
    (one,) = run_dict(tmp_path, study_dict | few)
    with pytest.raises(UserError, match=r"in 1 of 1 groups; .* ask more questions"):
        tilt_run(stored_cell(one), one, Reporter())
