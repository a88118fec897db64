"""Multiple choice: a letter or words name an option; the class is the option, wherever it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semcal import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.exact_match import Choice

Q = Question(id="q", text="Where?", answers=("Paris",), choices=("Rome", "Paris", "Paris, Texas", "A coruna"))
B = Choice()


@pytest.mark.parametrize(
    ("style", "text", "option"),
    [
        ("concise", "B", "Paris"),
        ("concise", " (b) ", "Paris"),
        ("concise", "B) Paris", "Paris"),
        ("concise", "B. the city of Paris", "Paris"),
        ("concise", "Option C", "Paris, Texas"),
        ("concise", "Paris", "Paris"),
        ("concise", "paris, texas.", "Paris, Texas"),
        ("concise", "A coruna", "A coruna"),
        ("sentence", "The answer is A) Rome.", "Rome"),
        ("cot", "Rome is older. The answer is B.", "Paris"),
        ("concise", "Rome or Paris", UNPARSED),
        ("concise", "Z", UNPARSED),
        ("concise", "Berlin", UNPARSED),
        ("cot", "B", UNPARSED),
    ],
)
def test_an_answer_names_an_option(style, text, option):
    assert B.of_text(Q, text, style) == option


def test_shuffled_options_keep_their_classes():
    shuffled = replace(Q, choices=Q.choices[::-1])
    assert B.of_text(shuffled, "C", "concise") == B.of_text(Q, "B", "concise") == "Paris"
    assert B.of_gold(shuffled) == B.of_gold(Q)
