"""The learning curve shows every number of questions with its interval, and the marginal beside it."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from probes.plots.learning_curve import learning_curve_figure


def curve(*points: tuple[int, float]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["questions", "gap"]).assign(rung="generative", held_out=60)
    return frame.assign(gap_low=frame["gap"] - 0.2, gap_high=frame["gap"] + 0.3)


def test_gaps_stand_over_the_questions_learnt_from_whatever_their_order() -> None:
    figure = learning_curve_figure(curve((240, 1.1), (60, 2.6), (120, 1.9)), title="a run", marginal=3.4)
    (axes,) = figure.axes
    (bars,) = (c for c in axes.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[60, 2.6], [120, 1.9], [240, 1.1]])
    np.testing.assert_allclose(bars.lines[2][0].get_segments()[0][:, 1], [2.4, 2.9])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["60", "120", "240"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] < 0 < 3.4 < axes.get_ylim()[1]
    listed = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(listed) == ["generative rung, 60 held-out questions", "marginal, the same for all questions"]


@pytest.mark.parametrize("marginal", [None, float("nan")])
def test_a_single_point_and_no_marginal_are_drawn(marginal: float | None) -> None:
    figure, buffer = learning_curve_figure(curve((40, -0.01)), title="t", marginal=marginal), BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.tell() > 1000
    assert len(figure.legends[0].get_texts()) == 1


def test_rows_of_several_rungs_and_no_rows_are_refused() -> None:
    two = pd.concat([curve((40, 1.0)), curve((40, 1.0)).assign(rung="mlp")])
    for frame, words in ((two, "2 rows of 2 rungs"), (curve(), "0 rows of 0 rungs")):
        with pytest.raises(ValueError, match=words):
            learning_curve_figure(frame, title="t")
