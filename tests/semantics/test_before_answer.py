"""What was written before the answering phrase, measured on answers whose chains are known."""

import math

import pytest

from semcal.semantics.before_answer import MIN_DISTINCT, MIN_WORDS, chains

PHRASE = "Let us think step by step. The answer is {}."  # 9 words before the answer


def test_distinct_chains_and_words_are_counted_per_question_and_per_sample():
    texts = [
        ["One two. The answer is A.", "One  two. The answer is B.", "Three. The answer is A."],
        ["The answer is C."],
    ]
    found = chains(texts, [[5, 1, 2], [8]], "cot", m=8)
    assert found is not None
    assert found.distinct == 1.5  # two in the first question, for spaces do not count, and one in the second
    assert found.share == 1.5 / 8
    assert found.words_mean == pytest.approx((6 * 5 + 2 * 4 + 8 * 3) / 16)
    assert found.words_median == 3.5  # half of the samples have three words
    assert found.read == 1


def test_a_phrase_that_all_samples_repeat_is_no_chain_of_thought():
    texts = [[PHRASE.format(answer) for answer in "ABC"]] * 4
    found = chains(texts, [[3, 2, 1]] * 4, "cot", m=6)
    assert found is not None
    assert (found.distinct, found.words_median) == (1, 9)
    assert found.alike


def test_answers_without_a_chain_are_alike_even_where_their_texts_differ():
    short = [[f"{'So' * k} the answer is A." for k in range(1, 5)]]
    found = chains(short, [[1, 1, 1, 1]], "cot", m=4)
    assert found is not None
    assert found.distinct > MIN_DISTINCT
    assert found.words_median < MIN_WORDS
    assert found.alike


def test_chains_that_differ_and_have_some_length_are_not_alike():
    long = [[f"Think of case {k} and decide. The answer is A." for k in range(4)]]
    found = chains(long, [[1, 1, 1, 1]], "cot", m=4)
    assert found is not None
    assert not found.alike


def test_samples_without_an_answering_phrase_are_left_out_and_their_share_is_given():
    found = chains([["I do not know.", "A b. The answer is C."], ["Hm."]], [[3, 1], [4]], "cot", m=4)
    assert found is not None
    assert (found.distinct, found.words_median, found.read) == (1, 5, 1 / 8)
    assert chains([["I do not know."]], [[4]], "cot", m=4) is None


def test_concise_answers_have_nothing_before_them_and_enumerated_ones_no_m():
    found = chains([["Paris", "Rome"]], [[0.7, 0.2]], "concise", m=None)
    assert found is not None
    assert (found.distinct, found.words_mean, found.words_median) == (1, 0, 0)
    assert math.isnan(found.share)
