"""Classes from similarities: a partition whose members are alike, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcal.semantics.collapsing.clustered import agglomerate


@st.composite
def similarities(draw):
    u = draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    upper = np.triu(rng.uniform(size=(u, u)), 1)
    return upper + upper.T + np.eye(u)


@given(similarities(), st.floats(0.05, 0.95))
def test_any_two_of_a_complete_class_are_alike_and_classes_cannot_be_merged(similarity, threshold):
    labels = agglomerate(similarity, threshold, method="complete")
    assert labels.shape == (len(similarity),)
    for label in set(labels.tolist()):
        own = np.flatnonzero(labels == label)
        assert similarity[np.ix_(own, own)].min() >= threshold - 1e-6
        for other in set(labels.tolist()) - {label}:
            assert similarity[np.ix_(own, np.flatnonzero(labels == other))].min() <= threshold + 1e-6


@given(similarities(), st.randoms(use_true_random=False), st.sampled_from(["complete", "average"]))
def test_classes_do_not_depend_on_the_order_of_items(similarity, random, method):
    order = list(range(len(similarity)))
    random.shuffle(order)
    labels = agglomerate(similarity, 0.6, method=method)
    moved = agglomerate(similarity[np.ix_(order, order)], 0.6, method=method)
    assert all(
        (labels[order[i]] == labels[order[j]]) == (moved[i] == moved[j]) for i in range(len(order)) for j in range(i)
    )


def test_labels_count_from_the_first():
    similarity = np.array([[1, 0, 0.9], [0, 1, 0], [0.9, 0, 1]])
    assert agglomerate(similarity, 0.5, method="complete").tolist() == [0, 1, 0]


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="symmetric"):
        agglomerate([[1, 0.2], [0.9, 1]], 0.5, method="complete")
