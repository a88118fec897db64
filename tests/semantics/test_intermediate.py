"""What is decided after i tokens, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcal.semantics.answer_tree import expected_confidence


def test_by_hand():
    ids = [(1, 2), (1, 3), (4,)]
    # Nothing read: classes a 0.5, b 0.5. After one token: below 1 are a 0.3 and b 0.5, below 4 is a 0.2.
    assert expected_confidence(ids, [0.3, 0.5, 0.2], ["a", "b", "a"]) == pytest.approx([0.5, 0.7, 1.0])


@given(
    st.dictionaries(
        st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
        st.tuples(st.integers(1, 9), st.sampled_from("abc")),
        min_size=1,
        max_size=12,
    )
)
def test_it_begins_at_the_confidence_never_falls_and_ends_at_one(answers):
    weight, klass = [w for w, _ in answers.values()], [k for _, k in answers.values()]
    expected = expected_confidence(list(answers), weight, klass)
    totals = {k: sum(w for w, its in answers.values() if its == k) for k in klass}
    assert expected[0] == pytest.approx(max(totals.values()) / sum(weight))
    assert (np.diff(expected) > -1e-12).all()
    assert expected[-1] == pytest.approx(1)


def test_lengths_must_agree_and_there_must_be_weight():
    with pytest.raises(ValueError, match="lengths must agree"):
        expected_confidence([(1,)], [1, 2], ["a"])
    with pytest.raises(ValueError, match="total weight of 0"):
        expected_confidence([(1,)], [0], ["a"])
