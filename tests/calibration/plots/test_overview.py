"""The figure of models side by side."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from semcal.calibration.plots.curves import by_model


def frame(models: list[str]) -> pd.DataFrame:
    values = {"accuracy": 0.5, "signed_gap": 0.1, "excess": 0.02}
    rows = [
        {"model": model, "line": line}
        | {name: value + i / 100 for name, value in values.items()}
        | {f"{name}_low": value + i / 100 - 0.01 for name, value in values.items()}
        | {f"{name}_high": value + i / 100 + 0.03 for name, value in values.items()}
        for i, model in enumerate(models)
        for line in ("facts · concise", "routes · cot")
    ]
    return pd.DataFrame(rows)


def test_a_row_a_model_a_mark_a_line_in_the_order_given():
    figure = by_model(frame(["sft", "base", "dpo"]), title="t")
    accuracy, gap, excess = figure.axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["sft", "base", "dpo"]
    for axes, lowest in ((accuracy, 0.5), (gap, 0.1), (excess, 0.02)):
        first, second = axes.containers
        np.testing.assert_allclose(first.lines[0].get_xdata(), lowest + np.arange(3) / 100)
        assert (np.diff(first.lines[0].get_ydata()) == 1).all()
        assert (second.lines[0].get_ydata() > first.lines[0].get_ydata()).all()
    low, high = gap.containers[0].lines[2][0].get_segments()[1][:, 0]
    assert (low, high) == pytest.approx((0.10, 0.14))
    figure.savefig(io.BytesIO())


def test_an_interval_that_is_not_known_is_left_out():
    shown = frame(["base", "sft"])
    shown.loc[0, ["excess", "excess_low", "excess_high"]] = np.nan
    by_model(shown, title="t").savefig(io.BytesIO())


def test_one_model_is_no_comparison():
    with pytest.raises(ValueError, match="1 model; a comparison needs at least two"):
        by_model(frame(["base"]), title="t")
