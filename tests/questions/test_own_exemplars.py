"""How many of a user's own questions become exemplars, and which are still asked."""

from __future__ import annotations

import json

import pytest

from experiments.config.study import PromptingConfig, TableConfig, load_dataset
from semcal import UserError


def table(path, n, *, worked=True, start=0):
    rows = [
        {"question": f"Which number is number {i}?", "answer": str(i)}
        | ({"worked": {"cot": f"It is {i}. The answer is {i}."}} if worked else {})
        for i in range(start, start + n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("n", "shots", "aside"),
    [(40, 4, 4), (40, 6, 6), (100, 4, 10), (400, 4, 32), (12, 0, 1)],
)
def test_a_tenth_is_set_aside_but_what_a_prompt_shows_and_at_most_what_the_study_says(tmp_path, n, shots, aside):
    config = TableConfig(kind="jsonl", path=table(tmp_path / "own.jsonl", n))
    built = load_dataset(config, PromptingConfig(shots=shots))
    assert (len(built.questions), len(built.exemplars)) == (n - aside, aside)
    assert built.summary == f"own: {n} rows, {n - aside} evaluated, {aside} kept as exemplars"


def test_without_worked_solutions_every_row_is_evaluated(tmp_path):
    config = TableConfig(kind="jsonl", path=table(tmp_path / "own.jsonl", 40, worked=False))
    built = load_dataset(config, PromptingConfig())
    assert len(built.questions) == 40
    assert built.summary == "own: 40 rows, 40 evaluated"


def test_a_file_of_exemplars_sets_none_aside_and_none_of_it_is_evaluated(tmp_path):
    own = table(tmp_path / "own.jsonl", 40)
    shown = table(tmp_path / "shown.jsonl", 6, worked=False, start=38)  # two of them are among the 40
    config = TableConfig(kind="jsonl", path=own, exemplars=shown)
    built = load_dataset(config, PromptingConfig())
    assert [e.text for e in built.exemplars] == [f"Which number is number {i}?" for i in range(38, 44)]
    assert sorted(int(q.answers[0]) for q in built.questions) == list(range(38))


def test_a_file_of_exemplars_that_is_not_there_is_named(tmp_path):
    config = TableConfig(kind="jsonl", path=table(tmp_path / "own.jsonl", 8), exemplars="nowhere.jsonl")
    with pytest.raises(UserError, match=r"no file nowhere\.jsonl"):
        load_dataset(config, PromptingConfig())
