"""The figure along training."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from probes.plots.predictability import emergence_curve


def frame(steps: list[int]) -> pd.DataFrame:
    rows = [
        {
            "line": line,
            "lineage": "",
            "step": step,
            "gap": 0.1 * i,
            "gap_low": 0.1 * i - 0.02,
            "gap_high": 0.1 * i + 0.02,
        }
        | {"excess": 0.2 - 0.02 * i, "excess_low": 0.18 - 0.02 * i, "excess_high": 0.22 - 0.02 * i}
        for line in ("facts · concise", "routes · cot")
        for i, step in enumerate(steps)
    ]
    return pd.DataFrame(rows)


def test_every_line_runs_over_its_steps_in_order_in_both_panels():
    figure = emergence_curve(frame([400, 0, 16]), title="t", probe="linear probe")
    for axes in figure.axes:
        drawn = [c.lines[0].get_xdata() for c in axes.containers]
        assert len(drawn) == 2
        for x in drawn:
            np.testing.assert_array_equal(x, [0, 16, 400])
    top, bottom = figure.axes
    assert top.containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.0])
    assert bottom.containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.18, 0.16, 0.2])
    figure.savefig(io.BytesIO())


def test_lineages_have_lines_of_their_own_and_one_name():
    both = pd.concat([frame([0, 16]), frame([0, 16]).assign(lineage="seed-1")])
    top, _ = emergence_curve(both, title="t", probe="linear probe").axes
    assert len(top.containers) == 4
    assert top.get_legend_handles_labels()[1] == ["facts · concise", "routes · cot"]
    assert top.containers[0].lines[0].get_color() == top.containers[1].lines[0].get_color()


def test_a_run_without_predictability_leaves_a_gap():
    shown = frame([0, 16, 32])
    shown.loc[1, ["gap", "gap_low", "gap_high"]] = np.nan
    figure = emergence_curve(shown, title="t", probe="linear probe")
    assert np.isnan(figure.axes[0].containers[0].lines[0].get_ydata()[1])


def test_one_step_does_not_make_a_curve():
    with pytest.raises(ValueError, match="1 training step; a curve needs at least two"):
        emergence_curve(frame([16]), title="t", probe="linear probe")
