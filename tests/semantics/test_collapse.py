"""B is total and deterministic, treats gold as it treats samples, and never counts an unparsed answer as right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcal import Question
from semcal.questions.cells import missing
from semcal.questions.wording import normalise
from semcal.semantics.class_table import UNEXPLORED, UNPARSED, ClassTable
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.collapsing.surface import KthWord
from semcal.semantics.extract import extract

Q = Question(id="q", text="Who?", answers=("The Beatles", "Fab Four"))
TOWNS = ExactMatch(
    {"Otter": "Otter", "Otter Town": "Otter", "the Silver Gate": "Otter", "Elm": "Elm", "Elm Otter": "X"}
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("a cat, an owl", "cat owl"),
        ("The The", "the the"),
        ("A", "a"),
        ("?", "?"),
        ("“Ruddigore”", "ruddigore"),
        ("Theatre", "theatre"),
        ("", ""),
    ],
)
def test_squad_normalisation(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normalisation_vanishes_only_with_blank_text(text):
    assert bool(normalise(text)) == (not missing(text))


@pytest.mark.parametrize(
    ("style", "text", "phrase"),
    [
        ("concise", " Paris\nQuestion", "Paris"),
        ("concise", "  \n", None),
        ("sentence", "The answer is Paris.", "Paris"),
        ("sentence", "It was built in Paris.", "built in Paris"),
        ("sentence", "Paris!", "Paris"),
        ("cot", "One, two. The answer is J. R. R. Tolkien.", "J. R. R. Tolkien"),
        ("sentence", "The answer is St. Louis. It lies on a river.", "St. Louis"),
        ("cot", "The answer is 3.5.", "3.5"),
        ("cot", "So the answer is: red\nQuestion", "red"),
        ("cot", "The answer is 3. No: the answer is 4.", "4"),
        ("cot", "I do not know", None),
        ("continuation", " went home", " went home"),
        ("cot", "3 + 4 = 7\n#### 7", "7"),
        ("cot", "So $x$ is \\boxed{\\frac{1}{2}}. Done.", "\\frac{1}{2}"),
        ("cot", "The answer is 4. Wait: \\boxed{5}", "5"),
        ("cot", "We get \\boxed{5}, so the answer is $\\boxed{6}$.", "6"),
        ("cot", "Answer: 12\n", "12"),
        ("cot", "So.\n**Final Answer:** 12", "12"),
        ("cot", "ANSWER: 12", "12"),
        ("cot", "an open \\boxed{5", None),
    ],
)
def test_extraction_by_style(style, text, phrase):
    assert extract(text, style) == phrase


def test_known_aliases_are_one_class_whatever_is_asked():
    b = ExactMatch(pooled=pooled([Q.answers]))
    other = Question(id="o", text="And who?", answers=("Queen",))
    assert b.of_text(other.blind, "Fab Four", "concise") == "beatles"
    assert ExactMatch().of_text(Q.blind, "Fab Four", "concise") == "fab four"
    assert b.of_gold(Q) == "beatles"
    assert {b.of_text(Q, t, "concise") for t in ("Beatles", "the beatles.", "FAB FOUR")} == {"beatles"}
    assert b.of_text(Q, "Stones", "concise") == "stones"
    assert b.of_text(Q, " \n", "concise") == UNPARSED


def test_a_closed_answer_space_collapses_every_alias_and_leaves_the_rest_unparsed():
    asked = Question(id="t", text="Where?", answers=("Otter", "Otter Town", "the Silver Gate"))
    assert TOWNS.of_gold(asked) == "Otter"
    assert TOWNS.of_text(asked, "the silver gate", "concise") == "Otter"
    assert TOWNS.of_text(asked, "You are in Elm", "sentence") == "Elm"
    assert TOWNS.of_text(asked, "From Elm you come to Otter Town.", "sentence") == "Otter"
    assert TOWNS.of_text(asked, "You are in Elm Otter.", "sentence") == "X"
    assert TOWNS.of_text(asked, "Elm, Otter. The answer is Elm.", "cot") == "Elm"
    assert TOWNS.of_text(asked, "Elm, Otter.", "cot") == UNPARSED
    assert TOWNS.of_text(asked, "Nowhere", "concise") == UNPARSED
    assert TOWNS.of_text(asked, "Elmira", "sentence") == UNPARSED


@given(st.text(), st.sampled_from(["concise", "sentence", "cot", "continuation"]))
def test_every_text_lands_in_exactly_one_class(text, style):
    for b in (ExactMatch(), TOWNS, KthWord(2)):
        klass = b.of_text(Q, text, style)
        assert isinstance(klass, str)
        assert klass
        assert b.of_text(Q, text, style) == klass


def test_kth_word():
    asked = Question(id="c", text="Once", answers=("upon a time, there",))
    assert KthWord(1).of_gold(asked) == "upon"
    assert KthWord(3).of_text(asked, " \"A dog-house, isn't it", "continuation") == "isn't"
    assert KthWord(4).of_text(asked, "one two three", "continuation") == UNPARSED


def test_a_class_table_of_answers_knows_ties_gold_and_unparsed():
    texts = [["Beatles", "Fab Four", "Stones", ""]]
    (found,) = collapse_blind(ExactMatch(pooled=pooled([Q.answers])), [Q], texts, "concise")
    table = ClassTable.of_answers([Q.id], ["g"], [found.classes], [[2, 1, 3, 1]], [found.gold])
    assert table.classes == (("beatles", "stones", UNPARSED),)
    assert table.sampled_counts.tolist() == [[3, 3, 1]]
    assert (table.m, table.by_count.plug_in[0], table.by_count.correct[0]) == (7, 3 / 7, 0.5)
    assert table.by_count.tied.all()
    assert table.distributions[0] == {"beatles": 3 / 7, "stones": 3 / 7, UNPARSED: 1 / 7}


def test_a_class_table_keeps_every_sample_and_unsampled_gold():
    table = ClassTable.of_answers(
        ["1", "2", "3"],
        ["a", "a", "b"],
        [["a", UNPARSED], ["b", "y", "w"], [UNPARSED]],
        [[3, 2], [2, 2, 1], [5]],
        [frozenset("a"), frozenset("yz"), frozenset({"c", UNPARSED})],
    )
    assert table.sampled_counts.tolist() == [[3, 2, 0, 0], [2, 2, 1, 0], [5, 0, 0, 0]]
    assert table.gold.tolist() == [
        [True, False, False, False],
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert table.unparsed.tolist() == [1, -1, 0]
    assert table.single_gold is None
    assert table.mean_classes == 2
    assert table.by_count.correct.tolist() == [1, 0.5, 0]


def test_enumerated_answers_have_masses_and_an_empty_question_its_own_class():
    table = ClassTable.of_answers(
        ["1", "2"], ["a", "b"], [["a", "b"], []], [[0.6, 0.3], []], [frozenset("a"), frozenset()], enumerated=True
    )
    assert table.enumerated
    assert table.classes == (("a", "b"), (UNEXPLORED,))
    assert table.seen_mass.tolist() == pytest.approx([0.9, 0])
    with pytest.raises(ValueError, match="needs samples"):
        _ = table.sampled_counts
