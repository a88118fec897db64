"""The profile of a run: gold answers written out as the model would have to, and calibration under each B."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.config.collapsing_functions import collapse_of
from experiments.config.run_folder import stored_cell
from experiments.report.pages import write_report
from experiments.report.summary_table import remarks
from experiments.sample.asked import Asked, gold_ids
from experiments.score.score import class_table, measure, profile, read_answers, score
from semcal import LanguageModel, Run
from semcal.questions.prompts import SENTENCES
from semcal.sampling.records import Prompt
from semcal.semantics.collapsing.alias_table import Aliases
from tests.conftest import save_checkpoint, word_tokenizer
from tests.experiments.conftest import questions_in, run_dict, study_of

ANSWERS_ALONE: dict[str, Any] = {"capture": {"positions": []}, "probes": {"enabled": False}}


@pytest.fixture
def study_dict(study_dict):
    return study_dict | ANSWERS_ALONE


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory) -> list[Run]:
    """A concise run and one in sentences, not to be changed."""
    folder = tmp_path_factory.mktemp("profiled")
    study = study_of(checkpoint, questions_in(folder), folder) | ANSWERS_ALONE
    return run_dict(folder, study | {"styles": ["concise", "sentence"]})


def profile_of(run: Run):
    cell = stored_cell(run)
    read = read_answers(cell, run, collapse_of(cell.semantics, run.aliases()))
    table = class_table(cell, run.questions(), read)
    own = measure(table, read, cell.calibration.resampling(cell.seed))
    return profile(cell, run.questions(), read, table, own), own


def test_questions_hold_their_gold_as_the_style_writes_it(runs, checkpoint):
    model = LanguageModel.load(checkpoint, device="cpu")
    for run, shown in zip(runs, (["{answer}"], SENTENCES), strict=True):
        for row in run.questions().to_dict("records"):
            assert row["written"] in [form.format(answer=row["answers"][0]) for form in shown]
            whole = model.encode(f"{row['prompt']} {row['written']}")
            assert [*model.encode(row["prompt"]), *row["written_ids"]] == list(whole)
            assert len(row["written_ids"]) == len(row["written"].split())


def test_a_profile_has_a_row_for_each_b_and_its_last_is_the_run(runs):
    run = runs[0]
    rows, whole = profile_of(run)
    assert [r.name for r in rows] == ["first token", "first word", "length in words", "meaning (exact)"]
    assert {r.n for r in rows} == {48}
    assert (rows[-1].smece, rows[-1].accuracy, rows[-1].null_mean) == (whole.smece, whole.accuracy, whole.null_mean)


def test_first_token_is_read_off_the_ids(runs):
    run = runs[0]
    questions = run.questions()
    counts = {q: Counter() for q in questions["id"]}
    for its in run.samples().to_dict("records"):
        counts[its["question_id"]][its["token_ids"][0]] += its["count"]
    right = []
    for its, ids in zip(counts.values(), questions["written_ids"], strict=True):
        modes = [token for token, count in its.items() if count == max(its.values())]
        right.append((ids[0] in modes) / len(modes))
    row = profile_of(run)[0][0]
    assert row.confidence == pytest.approx(np.mean([max(its.values()) / 8 for its in counts.values()]))
    assert row.classes == pytest.approx(np.mean([len(its) for its in counts.values()]))
    assert row.accuracy == pytest.approx(np.mean(right))


def test_answers_that_all_were_cut_are_right_about_a_gold_that_would_be_too(tmp_path, study_dict):
    """The limit is one token: nothing ends within it, and neither would the gold answer."""
    (run,) = run_dict(tmp_path, study_dict, "sampling.max_new_tokens=1", "sampling.stop=[never]")
    assert (run.samples()["finish"] == "length").to_numpy().mean() > 0.5
    row = profile_of(run)[0][2]
    assert (row.name, row.accuracy) == ("length in words", 1.0)


def test_the_profile_uses_the_gold_answers_whose_ids_are_known(tmp_path, runs):
    run = Run(Path(shutil.copytree(runs[0].folder, tmp_path / "copy")))
    table = run.questions()
    some = [[] if i % 2 else list(ids) for i, ids in enumerate(table["written_ids"])]
    run.write_questions(table.assign(written_ids=some), Aliases())
    assert [r.n for r in profile_of(run)[0]] == [24, 48, 48, 48]
    run.write_questions(table.assign(written_ids=[[]] * len(table)), Aliases())
    assert [r.name for r in profile_of(run)[0]][:1] == ["first word"]


def test_a_corrected_gold_is_written_again_and_its_ids_are_unknown(tmp_path, study_dict, questions_file):
    (run,) = run_dict(tmp_path, study_dict)
    before = run.questions()
    lines = [json.loads(line) for line in questions_file.read_text().splitlines()]
    for line in lines[::2]:
        line["answers"] = ["yes"]
    questions_file.write_text("\n".join(map(json.dumps, lines)))
    (again,) = run_dict(tmp_path, study_dict)
    after = again.questions()
    changed = (after["written"] == "yes").to_numpy()
    assert changed.any()
    assert not changed.all()
    assert after.loc[changed, "written_ids"].map(len).eq(0).all()
    pd.testing.assert_series_equal(after.loc[~changed, "written_ids"], before.loc[~changed, "written_ids"])


def test_enumerated_answers_have_a_profile_too(tmp_path, study_dict):
    exact = study_dict | {"sampling": study_dict["sampling"] | {"exact": {"epsilon": 0.05}, "max_new_tokens": 2}}
    rows, whole = profile_of(run_dict(tmp_path, exact)[0])
    assert len(rows) == 4
    assert rows[-1].smece == whole.smece


def test_a_continuation_is_what_truly_follows_and_has_no_length(tmp_path, study_dict):
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(f"red blue one {w} , two three {v} yes no" for w in "abcdefgh" for v in "ijklmn"))
    study = study_dict | {
        "datasets": [{"kind": "continuation", "path": str(text), "prompt_words": [4], "answer_words": 3}],
        "styles": ["continuation"],
        "semantics": [{"kind": "kth-word", "k": 1}],
    }
    (run,) = run_dict(tmp_path, study)
    assert run.questions()["written"].str.startswith("two three").all()
    two = word_tokenizer().get_vocab()["two"]
    assert all(ids[0] == two for ids in run.questions()["written_ids"])
    assert [r.name for r in profile_of(run)[0]] == ["first token", "first word", "meaning (word1)"]


@pytest.mark.parametrize("lead", ["", " ", " yes "])
def test_in_a_chat_the_template_says_how_an_answer_begins(tmp_path, study_dict, lead):
    path = save_checkpoint(tmp_path / "chat", scale=4.0)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }} Answer: "
        f"{{% else %}}{lead}{{{{ m['content'] }}}} </s>{{% endif %}}{{% endfor %}}"
    )
    tokenizer.save_pretrained(path)
    study = study_dict | {"models": [{"path": str(path), "name": "chat", "device": "cpu", "prompt": "chat"}]}
    (run,) = run_dict(tmp_path, study)
    for row in run.questions().to_dict("records"):
        expected = [*lead.split(), *row["written"].split()]
        assert tokenizer.convert_ids_to_tokens(list(row["written_ids"])) == expected


def test_what_shares_a_token_with_its_prompt_or_is_served_has_no_ids(runs, tiny):
    run = runs[0]
    cell, question = stored_cell(run), run.question_records()[0]
    shared = Asked(question, "Answer", Prompt("q", (*tiny.encode("Answer:"), 5)))
    assert gold_ids(cell, tiny, shared) == ()
    assert gold_ids(cell, object(), shared) == ()  # pyright: ignore[reportArgumentType]


def test_where_no_one_wrote_a_chain_the_profile_has_the_meaning_alone(tmp_path, study_dict, questions_file):
    rows = [json.loads(line) for line in questions_file.read_text().splitlines()]
    plain = [{name: value for name, value in row.items() if name != "worked"} for row in rows]
    questions_file.write_text("\n".join(map(json.dumps, plain)))
    study = study_dict | {"styles": ["cot"], "prompting": {"shots": 0}}
    (run,) = run_dict(tmp_path, study)
    assert run.questions()["written"].eq("").all()
    assert run.questions()["written_ids"].map(len).eq(0).all()
    rows, _ = profile_of(run)
    assert [r.name for r in rows] == ["meaning (exact)"]


def test_chains_are_measured_and_a_run_whose_chains_are_all_alike_says_so(tmp_path, study_dict):
    (run,) = run_dict(tmp_path, study_dict | {"styles": ["cot"]})
    samples = run.samples()
    (key, *others) = run.shard_keys()
    (run.folder / "digests.json").unlink()
    for shard in (key, *others):
        path = run.folder / "samples" / f"{shard}.parquet"
        rows = pd.read_parquet(path)
        rows.assign(text=[f"Let us think. The answer is {i % 3}." for i in range(len(rows))], finish="stop").to_parquet(
            path
        )
    cell = stored_cell(run)
    score(cell, run)
    found = run.calibration()["chains"]
    assert (found["distinct"], found["share"], found["words_median"], found["read"]) == (1, 1 / 8, 6, 1)
    assert "1.0 distinct chains per question (expected at least 1.5)" in found["warning"]
    assert found["warning"] in remarks(cell, run)
    write_report(cell, run)
    page = (run.folder / "report.html").read_text()
    assert page.count(found["warning"]) == 1
    assert "Before the answering phrase" in page
    assert len(samples) == len(run.samples())
