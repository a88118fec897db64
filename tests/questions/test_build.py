"""A dataset keeps exemplars and evaluated questions apart, ties repeats together and shuffles options."""

from __future__ import annotations

import logging
import re

import pytest

from semcal import Question, UserError
from semcal.questions.load_dataset import build
from semcal.questions.pool import pool


def questions_of(n, **changes):
    usual = {"answers": ("x",), "worked": {"cot": "It must be x. The answer is x."}}
    return [Question(**{"id": f"q{i}", "text": f"Question {i}?"} | usual | changes) for i in range(n)]


def test_a_dataset_keeps_exemplars_out_of_what_is_evaluated():
    all_asked = questions_of(40)
    twins = [Question(id=f"twin{i}", text=f"question {i}", answers=("x",)) for i in range(40)]
    dataset = build("d", all_asked + twins, n=None, exemplars=10, seed=3)
    shown = {q.text.lower().strip("?") for q in dataset.exemplars}
    assert len(dataset.exemplars) == 10
    assert not shown & {q.text.lower().strip("?") for q in dataset.questions}
    assert build("d", all_asked + twins, n=None, exemplars=10, seed=3) == dataset
    assert build("d", all_asked + twins, n=None, exemplars=10, seed=4) != dataset


def test_exemplars_share_no_group_with_the_evaluated():
    all_asked = [q for i in range(10) for q in questions_of(1, id=f"a{i}", group=f"g{i % 3}", text=f"T{i}")]
    dataset = build("d", all_asked, n=None, exemplars=1, seed=0)
    assert not {q.group for q in dataset.exemplars} & {q.group for q in dataset.questions}


def test_one_id_with_two_texts_is_refused_and_an_exact_repeat_kept_once():
    all_asked = questions_of(3)
    assert len(build("d", all_asked + all_asked, n=None, exemplars=0, seed=0).questions) == 3
    with pytest.raises(UserError, match="two questions have the id 'q0'"):
        build("d", all_asked + questions_of(1, text="Another?"), n=None, exemplars=0, seed=0)
    with pytest.raises(UserError, match="n is 5, but"):
        build("d", all_asked, n=5, exemplars=0, seed=0)
    with pytest.raises(UserError, match="no question is left"):
        build("d", all_asked, n=None, exemplars=3, seed=0)


def bare(question):
    return re.sub(r"\W+", " ", question.text).casefold().strip()


def test_repeated_texts_get_one_group_and_are_reported_in_one_line(caplog):
    all_asked = [
        *questions_of(1, id="a", text="Who wrote it?"),
        *questions_of(1, id="b", text="who wrote  it", answers=("y",)),
        *questions_of(1, id="c", text="Who read it?"),
        *questions_of(1, id="d", text="WHO WROTE IT"),
    ]
    with caplog.at_level(logging.WARNING):
        dataset = build("d", all_asked, n=None, exemplars=0, seed=0)
    group = {q.id: q.group for q in dataset.questions}
    assert group["a"] == group["b"] == group["d"] == "a"
    assert group["c"] == "c"
    (record,) = caplog.records
    assert record.getMessage() == "d: 2 questions repeat another's text and join its group (b, d)"
    caplog.clear()
    build("d", questions_of(5), n=None, exemplars=0, seed=0)
    assert not caplog.records


def test_groups_join_through_others():
    """a and b share a label, b and c a text, c and d a label; e stands alone, and so do texts without a word."""
    all_asked = [
        *questions_of(1, id="a", text="A", group="g"),
        *questions_of(1, id="b", text="B", group="g"),
        *questions_of(1, id="c", text="b!", group="h"),
        *questions_of(1, id="d", text="D", group="h"),
        *questions_of(1, id="e", text="E", group="i"),
        *questions_of(1, id="f", text="+"),
        *questions_of(1, id="g", text="-", group="j"),
    ]
    for order in (all_asked, all_asked[::-1]):
        group = {q.id: q.group for q in build("d", order, n=None, exemplars=0, seed=0).questions}
        assert group["a"] == group["b"] == group["c"] == group["d"]
        assert len({group[i] for i in "aefg"}) == 4


def test_no_exemplar_is_tied_to_an_evaluated_question_by_text_or_group():
    all_asked = [
        Question(
            id=f"{i}-{k}",
            text=f"Question {i}" + "?" * k,
            answers=("x",),
            group=f"g{i // 3}-{k}",
            worked={"cot": "The answer is x."},
        )
        for i in range(60)
        for k in range(2)
    ]
    for seed in range(5):
        dataset = build("d", all_asked, n=None, exemplars=6, seed=seed)
        assert len(dataset.questions) >= 60
        assert not {bare(q) for q in dataset.exemplars} & {bare(q) for q in dataset.questions}
        assert not {q.group for q in dataset.exemplars} & {q.group for q in dataset.questions}


def test_too_few_questions_for_the_exemplars():
    with pytest.raises(UserError, match="d: exemplars is 4, but there are only 3 questions"):
        build("d", questions_of(3), n=None, exemplars=4, seed=0)


def test_without_worked_solutions_all_questions_are_evaluated_and_the_pool_is_shown():
    plain = questions_of(40, worked={})
    dataset = build("d", plain, n=None, exemplars=10, seed=0)
    assert len(dataset.questions) == 40
    assert dataset.exemplars == pool()
    assert build("d", plain, n=None, exemplars=0, seed=0) == dataset


def test_a_question_of_the_pool_is_not_shown_where_it_is_evaluated():
    asked = pool()[3]
    same = questions_of(1, id="same", text=asked.text.upper().replace("?", " ?!"), worked={})
    both = [*same, *questions_of(5, worked={})]
    assert build("d", both, n=None, exemplars=0, seed=0).exemplars == tuple(q for q in pool() if q != asked)


def test_only_questions_with_a_worked_solution_become_exemplars():
    mixed = [*questions_of(6), *questions_of(1, id="plain", text="Another?", worked={})]
    for seed in range(10):
        dataset = build("d", mixed, n=None, exemplars=6, seed=seed)
        assert {q.id for q in dataset.exemplars} == {f"q{i}" for i in range(6)}
        assert [q.id for q in dataset.questions] == ["plain"]
    with pytest.raises(UserError, match="exemplars is 7, but there are only 6 questions with a worked solution"):
        build("d", mixed, n=None, exemplars=7, seed=0)


def test_questions_with_options_keep_their_own_exemplars():
    lettered = questions_of(20, choices=("x", "y"), worked={})
    dataset = build("d", lettered, n=None, exemplars=4, seed=0)
    assert len(dataset.exemplars) == 4
    assert all(q.choices for q in dataset.exemplars)


def test_options_are_shuffled_by_seed_and_question():
    choices = ("x", "y", "z", "w")
    all_asked = questions_of(60, choices=choices)
    dataset = build("d", all_asked, n=None, exemplars=20, seed=0)
    both = dataset.questions + dataset.exemplars
    assert all(sorted(q.choices) == sorted(choices) for q in both)
    assert {q.choices.index("x") for q in dataset.questions} == {0, 1, 2, 3}
    assert {q.choices.index("x") for q in dataset.exemplars} == {0, 1, 2, 3}
    assert build("d", all_asked, n=None, exemplars=20, seed=0) == dataset
    by_id = {q.id: q.choices for q in both}
    assert {q.id: q.choices for q in build("d", all_asked[:30], n=None, exemplars=0, seed=0).questions} == {
        q.id: by_id[q.id] for q in all_asked[:30]
    }
    assert any(q.choices != by_id[q.id] for q in build("d", all_asked, n=None, exemplars=20, seed=1).questions)
