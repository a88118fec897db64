"""What a model was trained on is not evaluated: neither a question, nor its text in another dataset, nor its group."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from semcal import Question, UserError, load_dataset
from semcal.questions.held_out import TRAINED, touched, write_trained
from semcal.questions.load_dataset import build, read_table
from semcal.questions.wording import bare_text


def question(i: int, **more) -> Question:
    return Question(**{"id": f"q{i}", "text": f"What is {i}?", "answers": (str(i),)} | more)


def test_no_evaluated_question_shares_a_text_or_a_group_with_a_trained_one():
    rng = np.random.default_rng(0)
    for _ in range(30):
        # few texts and few groups, so that many questions are joined through others
        made = [question(i, text=f"What is {rng.integers(40)}?", group=f"g{rng.integers(60)}") for i in range(60)]
        trained = [made[i] for i in rng.choice(60, 5, replace=False)]
        left = build("some", made, n=None, exemplars=0, seed=0, trained=trained).questions
        everything = build("some", made, n=None, exemplars=0, seed=0).questions
        root = {q.id: q.group for q in everything}
        seen = {root[q.id] for q in trained}
        assert {q.id for q in left} == {q.id for q in everything if root[q.id] not in seen}
        assert not {bare_text(q.text) for q in left} & {bare_text(q.text) for q in trained}
        labels = {q.id: q.group for q in made}
        assert not {labels[q.id] for q in left} & {q.group for q in trained}


def test_an_id_alone_says_nothing_in_another_dataset():
    mine, theirs = question(1), question(1, text="Who are you?")
    assert touched([mine], [theirs]) == [False]
    assert touched([mine], [replace(theirs, text="what is 1")]) == [True]  # case and punctuation do not matter
    assert touched([replace(mine, group="ones")], [replace(theirs, group="ones")]) == [True]


def test_the_file_next_to_a_model_is_a_table_of_questions(tmp_path):
    made = [question(i, group=f"g{i % 3}", others=(("x",),), answers=(str(i), f"no. {i}")) for i in range(6)]
    write_trained([*made, made[0]], tmp_path)
    read = read_table(tmp_path / TRAINED)
    assert [(q.id, q.text, q.answers, q.group) for q in read] == [(q.id, q.text, q.answers, q.group) for q in made]
    assert [p.name for p in tmp_path.iterdir()] == [TRAINED]


def test_neither_exemplars_nor_questions_come_from_the_excluded(tmp_path):
    rows = [
        {"id": f"q{i}", "question": f"What is {i}?", "answers": [str(i)], "worked": {"cot": "x"}} for i in range(20)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    write_trained([question(i) for i in range(8)], tmp_path)
    dataset = load_dataset(file, exemplars=4, exclude=tmp_path / TRAINED)
    assert {q.id for q in (*dataset.questions, *dataset.exemplars)} == {f"q{i}" for i in range(8, 20)}
    assert len(dataset.alias_lists) == 20  # B knows the forms of all answers, whoever is asked for them
    with pytest.raises(
        UserError, match=r"n is 9, but only 8 questions are left after 4 exemplars and 8 that are excluded"
    ):
        load_dataset(file, n=9, exemplars=4, exclude=tmp_path / TRAINED)
    write_trained([question(i) for i in range(20)], tmp_path)
    with pytest.raises(UserError, match="trained on all of its questions"):
        load_dataset(file, exclude=tmp_path / TRAINED)
    with pytest.raises(UserError, match="no file"):
        load_dataset(file, exclude=tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="atlas-facts is neither"):
        load_dataset("atlas-facts", n=5, exclude=tmp_path / TRAINED)
