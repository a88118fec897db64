"""What unparsed answers might have been, by hand on small tables."""

import numpy as np
import pytest

from semcal.calibration.estimators.unparsed import unparsed_bounds
from semcal.semantics.class_table import ClassTable


def test_the_four_readings_of_one_question():
    # 5 right, 3 wrong, 2 unparsed: confidence 0.7, 0.5, 0.7, 0.5, and the answer is right under all readings.
    table = ClassTable.of_arrays([[5, 3, 2]] * 20, [0] * 20, [2] * 20)
    found = unparsed_bounds(table)
    gaps = {name: round(r.signed_gap, 6) for name, r in found.readings.items()}
    assert gaps == {"top class": -0.3, "each its own": -0.5, "gold": -0.3, "one wrong answer": -0.5}
    assert found.parsed_only.signed_gap == pytest.approx(5 / 8 - 1)
    assert (found.share, found.left_out) == (0.2, 0)
    assert found.least <= found.most


def test_unparsed_answers_that_prevail_may_decide_correctness():
    table = ClassTable.of_arrays([[1, 3, 6], [0, 0, 10]], [0, 0], [2, 2])
    found = unparsed_bounds(table)
    gaps = {name: round(r.signed_gap, 6) for name, r in found.readings.items()}
    assert gaps["gold"] == pytest.approx(np.mean([0.7, 1.0]) - 1)
    assert gaps["one wrong answer"] == pytest.approx(np.mean([0.6, 1.0]))
    assert gaps["top class"] == pytest.approx(np.mean([0.9, 1.0]))
    assert gaps["each its own"] == pytest.approx(np.mean([0.3, 0.1]))
    assert found.left_out == 1


def test_without_unparsed_answers_all_figures_are_one():
    table = ClassTable.of_arrays([[5, 3], [2, 6]], [0, 0])
    found = unparsed_bounds(table)
    assert found.least == found.most == pytest.approx(found.parsed_only.smece)
    with pytest.raises(ValueError, match="log-probabilities"):
        unparsed_bounds(table, by_mass=True)
