# ruff: noqa: F811 (fixtures of another file)
"""Files of a finished run that were edited, mixed or lost: read as they are meant, or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from semcal import Question, Run, UserError, collapse
from semcal.models.checkpoint import Answer
from semcal.runs.digests import DIGESTS
from tests.experiments.pipeline.test_cli import semcal
from tests.hostile.test_analysis_keeps_results import finished, run_of, study  # noqa: F401

held = pytest.mark.held_before


def without_digests(run: Run) -> Run:
    """As an early version of semcal left a run: no digest says that a file was changed."""
    (run.folder / DIGESTS).unlink()
    return run


def samples(change):
    def damage(run: Path) -> None:
        (path,) = (run / "samples").glob("*.parquet")
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    return damage


def first(name, value):
    return samples(lambda d: d.assign(**{name: [value, *d[name].iloc[1:]]}))


def questions(change):
    def damage(run: Path) -> None:
        change(pd.read_parquet(run / "questions.parquet")).to_parquet(run / "questions.parquet", index=False)

    return damage


SAMPLES = {
    "a count raised": (samples(lambda d: d.assign(count=d["count"] + (d.index == 0))), "has 9 samples, others 8"),
    "a count below 1": (first("count", -1), "count of an answer to .* is -1"),
    "a count in part": (first("count", 1.5), "count of an answer to .* is 1.5"),
    "a count lost": (first("count", None), "count of an answer to .* is nan"),
    "an answer lost": (samples(lambda d: d.iloc[1:]), r"has \d samples, others 8"),
    "an answer twice": (samples(lambda d: pd.concat([d.iloc[:1], d])), r"has \d+ samples, others 8"),
    "a question lost": (samples(lambda d: d[d.question_id != d.question_id.iloc[0]]), "question '.*' has none"),
    "another question": (
        samples(lambda d: d.assign(question_id=d.question_id.replace(d.question_id.iloc[0], "zz"))),
        "question 'zz' is not asked",
    ),
    "a text lost": (first("text", None), "text of an answer to .* is nan"),
    "another finish": (first("finish", "eos"), "finish of an answer to .* is eos"),
    "a probability above 1": (first("logprob", 3.0), "logprob of an answer to .* is 3.0"),
    "an infinite probability": (first("logprob", math.inf), "logprob of an answer to .* is inf"),
    "a column lost": (samples(lambda d: d.drop(columns="finish")), "column 'finish' of the samples is missing"),
    "a question not asked any more": (questions(lambda d: d.iloc[1:]), "is not asked"),
    "questions in another order": (questions(lambda d: d.iloc[::-1]), "they are in another order"),
    "half a question table": (
        lambda run: (run / "questions.parquet").write_bytes((run / "questions.parquet").read_bytes()[:99]),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=held) if c.startswith("half") else c for c in SAMPLES])
def test_samples_that_were_changed_are_refused(study, case):
    damage, message = SAMPLES[case]
    run = without_digests(run_of(study))
    damage(run.folder)
    with pytest.raises(UserError, match=message) as caught:
        run.samples()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["score", "report"])
def test_a_command_on_them_is_one_line(monkeypatch, capsys, study, command):
    first("text", None)(without_digests(run_of(study)).folder)
    code, _, err = semcal(monkeypatch, capsys, command, study)
    assert code == 2
    assert "text of an answer to" in err
    assert "Traceback" not in err


def test_a_folder_that_was_renamed_is_listed_as_not_there(monkeypatch, capsys, study):
    folder = run_of(study).folder
    folder.rename(folder.with_name("elsewhere"))
    code, out, err = semcal(monkeypatch, capsys, "ls", study)
    assert code == 0
    assert "Traceback" not in err
    assert "not run" in out


# ---- activations ---------------------------------------------------------------------------------------------------


def tensors(change):
    def damage(run: Path) -> None:
        (path,) = (run / "activations").glob("*.safetensors")
        with safe_open(path, "numpy") as stored:
            facts = stored.metadata()
        found = load_file(path)
        change(found)
        save_file({name: np.ascontiguousarray(values) for name, values in found.items()}, path, metadata=facts)

    return damage


def each(pattern, change):
    def over(found):
        for name in [name for name in found if name.endswith(pattern)]:
            found[name] = change(found[name])

    return tensors(over)


ACTIVATIONS = {
    "rows that are counted twice": (each(".rows", lambda v: v * 2), r"has 24 rows and 12 token ids"),
    "other tokens": (each(".token_id", lambda v: v + 1), "was read at token id"),
    "other places": (each(".token_index", lambda v: v - 1), "was read at token id|has .* there"),
    "fewer rows": (each("", lambda v: v[:-1]), "activations of 11 questions, but prompts of 12"),
    "NaN": (each("last_prompt_token", lambda v: v * np.nan), "holds NaN or infinity|NaN"),
}


@pytest.mark.parametrize("case", [c if c.startswith("rows") else pytest.param(c, marks=held) for c in ACTIVATIONS])
def test_activations_that_were_changed_are_refused(study, case):
    damage, message = ACTIVATIONS[case]
    run = without_digests(run_of(study))
    damage(run.folder)
    with pytest.raises(UserError, match=message) as caught:
        _ = run.activations("last_prompt_token").values
    assert "\n" not in str(caught.value)


# ---- probabilities that do not add up ------------------------------------------------------------------------------


def test_probabilities_that_add_up_to_more_than_1_are_not_believed(caplog):
    """As a server states them that computes in 8 bits, in another batch for each request."""
    asked = [Question(id="q", text="Colour?", answers=("red",)), Question(id="r", text="Number?", answers=("one",))]
    rounded = [Answer("red", (), 6, math.log(0.65), "stop"), Answer("blue", (), 4, math.log(0.42), "stop")]
    exact = [Answer("one", (), 10, math.log(0.9), "stop")]
    table = collapse(asked, [rounded, exact])
    assert table.masses is None
    assert table.counts.tolist() == [[6, 4], [10, 0]]
    assert "the answers of question 'q' have a total probability of 1.07" in caplog.text
    assert collapse(asked[1:], [exact]).masses is not None
