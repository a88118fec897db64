"""Form as a collapsing function: hand-made answers land where they should, and an unfinished one is no short one."""

from __future__ import annotations

import numpy as np
import pytest

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.surface import CUT_OFF, KthWord, first_token, first_word, length

QUESTION = Question(id="q", text="What?", answers=("y",))


def test_first_token_is_the_first_id():
    assert first_token([17, 3]) == first_token(np.array([17, 4, 4])) == "17"
    assert first_token([3, 17]) != first_token([17, 3])
    assert first_token([]) == first_token(np.array([])) == UNPARSED


@pytest.mark.parametrize("text", [" The answer is 4.", "the Answer", "“The end”", "", "  ...", "Don't stop", "4 + 4"])
def test_first_word_is_that_of_kth_word(text):
    assert first_word(text) == KthWord(1).of_text(QUESTION, text, "concise")


def test_first_word_knows_neither_case_nor_marks():
    assert first_word(" “The answer") == first_word("the end") == "the"
    assert first_word("?!") == UNPARSED


def test_a_first_word_that_was_cut_is_not_read():
    assert first_word(" Glenha", cut=True) == UNPARSED
    assert first_word(" Glenhaven", cut=False) == first_word("Glenhaven To", cut=True) == "glenhaven"
    assert first_word("Glenhaven ", cut=True) == "glenhaven"


def test_length_counts_words():
    assert length("") == "0"
    assert length(" Paris.") == "1"
    assert length("The answer\n is  J. R. R. Tolkien.") == "7"


def test_answers_that_were_cut_are_of_one_length():
    assert length("so it is", cut=True) == length("so it is because", cut=True) == CUT_OFF
    assert length("so it is") != CUT_OFF
