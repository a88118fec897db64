"""Answers that differ in one mark: apart where another thing is meant, together where it is the same thing."""

from __future__ import annotations

import unicodedata

import pytest

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.exact_match import Choice, ExactMatch
from semcal.semantics.collapsing.surface import KthWord

held = pytest.mark.held_before
nfd = unicodedata.normalize("NFD", "Beyoncé")


def question(*answers, **fields):
    return Question(id="q", text="What?", answers=answers, **fields)


def collapsed(b, asked, *texts, style="concise"):
    (found,) = collapse_blind(b, [asked], [texts], style)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-5", "5"),
        ("-$5", "$5"),
        ("(-5)", "(5)"),
        ("10:30", "1030"),
        ("Genesis 1:3", "Genesis 13"),
        ("1/2", "12"),
        ("9/11", "911"),
        ("3-2", "32"),
        ("1914-1918", "19141918"),
        ("1.2.1", "12.1"),
        (".5", "5"),
        ("1,5", "15"),
        ("2^10", "210"),
        ("1945[2]", "19452"),
        ("5'10", "510"),
        ("C++", "C"),
        ("C#", "C"),
        ("C++", "C#"),
        ("O+", "O-"),
        ("O-", "O"),
        ("Ca2+", "Ca2"),
        ("UTC+5", "UTC-5"),
        pytest.param("−5", "5", marks=held),
        pytest.param("A+", "A", marks=held),
        pytest.param("½", "1", marks=held),
        pytest.param("x²", "x2", marks=held),
        pytest.param("①", "1", marks=held),
        pytest.param("café", "cafe", marks=held),
    ],
)
def test_two_answers_are_two_classes_and_one_is_not_the_others_gold(one, other):
    found = collapsed(ExactMatch(), question(one), one, other)
    assert found.classes[0] != found.classes[1]
    assert found.gold == {found.classes[0]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Beyoncé", nfd),
        ("각", unicodedata.normalize("NFD", "각")),
        ("-5", "−5"),
        ("1914-1918", "1914–1918"),
        ("1914-1918", "1914 – 1918"),
        ("Spider-Man", "Spider‑Man"),
        (".5", "0.5"),
        ("Algeria", "Algeria\u200e"),
        ("Amsterdam", "\ufeffAmster\u00addam\u200b"),
        ("1, 2, 3", "1,2,3"),
        pytest.param("1,500", "1500", marks=held),
        pytest.param("1,234,567", "1234567", marks=held),
        pytest.param("1,50,000", "150000", marks=held),
        pytest.param("1'500", "1500", marks=held),
        pytest.param("+5", "5", marks=held),
        pytest.param("5.", "5", marks=held),
        pytest.param("Spider-Man", "Spiderman", marks=held),
        pytest.param("U.S.", "US", marks=held),
        pytest.param("M*A*S*H", "MASH", marks=held),
        pytest.param("The Hague", "hague!", marks=held),
        pytest.param("#1", "1", marks=held),
    ],
)
def test_two_wordings_are_one_class_and_one_is_the_others_gold(one, other):
    found = collapsed(ExactMatch(), question(one), one, other)
    assert len(set(found.classes)) == 1
    assert found.gold == {found.classes[0]}


def test_markdown_and_marks_around_an_answer_go():
    texts = ("C++", "**C++**", '"C++".', "(C++)", "The C++!")
    assert collapsed(ExactMatch(), question("C++"), *texts).classes == ("c++",) * 5


def test_pooled_aliases_are_apart_by_a_mark_and_together_by_form():
    known = pooled([("C", "C language"), ("C++", "C with classes"), ("Beyoncé", "Queen Bey")])
    found = collapsed(
        ExactMatch(pooled=known), question("C++"), "C language", "C++", "C with classes", nfd, "Queen Bey"
    )
    assert found.classes == ("c", "c++", "c++", "beyoncé", "beyoncé")
    assert found.gold == {"c++"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I would say 5 degrees", "warm"),
        ("It is 5, or so", "warm"),
        ("Say C here", "see"),
        pytest.param("I would say -5 degrees", "cold", marks=held),
        pytest.param("It was 1.5 degrees", UNPARSED, marks=held),
        pytest.param("Say C++ here", "plus", marks=held),
    ],
)
def test_a_form_of_a_closed_set_is_not_mentioned_inside_another(text, label):
    b = ExactMatch(closed={"5": "warm", "-5": "cold", "C": "see", "C++": "plus"})
    assert collapsed(b, question("5"), text).classes == (label,)


@pytest.mark.parametrize(
    ("options", "text", "label"),
    [
        (("C", "C++", "C#"), "C++", "C++"),
        (("C", "C++", "C#"), "I think C# it is", "C#"),
        (("5", "-5"), "-5", "-5"),
        (("1.5", "15"), "15", "15"),
        (("15", "1.5"), "about 1.5 metres", "1.5"),
        (("a small step for man", "small step for a man"), "small step for man", UNPARSED),
        (("small step for man", "small step for a man"), "small step for a man", "small step for a man"),
        pytest.param(("Paris", "Paris, Texas"), "Paris, Texas", "Paris, Texas", marks=held),
    ],
)
def test_an_option_is_not_taken_for_one_that_looks_like_it(options, text, label):
    asked = question(options[0], choices=options)
    assert collapsed(Choice(), asked, text).classes == (label,)


def test_a_word_of_a_continuation_is_one_in_either_form():
    b = KthWord(1)
    assert b.of_text(question("x").blind, nfd, "") == b.of_text(question("x").blind, "Beyoncé", "") == "beyoncé"


def test_questions_that_differ_in_a_mark_are_not_one_group(tmp_path):
    from semcal import load_dataset

    lines = [
        f'{{"id": "{i}", "question": "{text}", "answers": ["x"]}}'
        for i, text in enumerate(("What is 3 + 2?", "What is 3 - 2?", "Who made C?", "Who made C++?"))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    groups = {q.text: q.group for q in load_dataset(tmp_path / "t.jsonl").questions}
    assert len(set(groups.values())) == 4


def test_names_say_that_results_are_of_another_version():
    assert (ExactMatch().name, Choice().name, KthWord(1).name) == ("exact/4", "choice/2", "kth-word(1)/2")
