"""What an answer mentions: known forms are found in sentences, and everything else is as in exact match."""

from __future__ import annotations

import pytest

from semcal.questions.question import BlindQuestion
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.collapsing.mention import Mention

KNOWN = pooled([["Italy"], ["Guinea"], ["Papua New Guinea"], ["United States", "USA"]])
B = Mention({}, KNOWN)
Q = BlindQuestion("q", "In which country is it?", "g")


@pytest.mark.parametrize(
    ("text", "style", "label"),
    [
        ("Italy", "concise", "italy"),
        ("It stands in Rome, Italy.", "concise", "italy"),
        ("Not in Italy but in the USA", "concise", "united states"),
        ("Somewhere in Papua New Guinea", "concise", "papua new guinea"),
        ("Somewhere in Italyland", "concise", "somewhere in italyland"),
        ("Peru", "concise", "peru"),
        ("The tower is located in Italy, in Europe.", "sentence", "italy"),
        ("Italy is where it was built.", "sentence", "italy"),
        ("The answer is Peru.", "sentence", "peru"),
        ("", "concise", UNPARSED),
    ],
)
def test_the_class_of_a_text(text, style, label):
    assert B.of_text(Q, text, style) == label


def test_known_forms_and_gold_are_read_as_by_exact_match():
    for form in KNOWN:
        assert B.of_reference(Q, form) == B.of_text(Q, form, "concise") == ExactMatch({}, KNOWN).of_reference(Q, form)


def test_without_known_forms_it_is_exact_match():
    for text in ("It stands in Rome, Italy.", "Rome"):
        assert Mention().of_text(Q, text, "concise") == ExactMatch().of_text(Q, text, "concise")
