"""The figure of rungs shows whatever stands in the table, each at one layer, baselines apart."""

from io import BytesIO

import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from probes.evaluation.result import at_layer
from probes.plots.rungs_figure import rungs_figure

LAST = "blocks.1.hook_resid_post"


def frame(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["position", "rung", "layer", "explained"])
    return table.assign(low=table["explained"] - 0.1, high=table["explained"] + 0.1, ceiling=0.9)


def drawn(figure: Figure) -> Figure:
    figure.savefig(BytesIO(), format="png")
    return figure


def test_a_panel_a_position_with_rungs_up_the_ladder_and_baselines_below() -> None:
    table = frame(
        ("last_prompt_token", "baseline:tfidf", "words", 0.2),
        ("last_prompt_token", "lora", "whole model", 0.8),
        ("last_prompt_token", "unheard-of", LAST, 0.5),
        ("last_prompt_token", "linear", LAST, 0.6),
        ("last_prompt_token", "baseline:marginal", "", 0.0),
        ("chain_50", "linear", LAST, 0.3),
        ("chain_50", "baseline:random-init", LAST, 0.1),
    )
    figure = drawn(rungs_figure(table, title="t"))
    first, second = figure.axes
    names = [tick.get_text() for tick in first.get_yticklabels()]
    assert names == ["linear", "LoRA, head", "unheard of", "TF-IDF and length", "random weights"]
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("last prompt token", "chain, 50 %")
    shown = [c.lines[0] for c in first.containers if isinstance(c, ErrorbarContainer)]
    assert [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in shown] == [
        (0.6, 0),
        (0.8, 1),
        (0.5, 2),
        (0.2, 3),
    ]
    assert [line.get_markerfacecolor() == "white" for line in shown] == [False, False, False, True]
    assert len([c for c in second.containers if isinstance(c, ErrorbarContainer)]) == 2


def test_what_lies_far_below_zero_is_written_at_the_edge() -> None:
    axes = drawn(rungs_figure(frame(("p", "linear", LAST, 0.4), ("p", "lens", LAST, -7.2)), title="t")).axes[0]
    assert [text.get_text() for text in axes.texts] == ["−720 %"]
    assert axes.get_xlim()[0] == pytest.approx(-0.55)


def nats(*rows: tuple[str, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["rung", "gap"]).assign(position="p", explained=float("nan"))
    return table.assign(gap_low=table["gap"] - 0.1, gap_high=table["gap"] + 0.1, gap_floor=0.02)


def test_where_gaps_are_known_they_are_shown_the_marginals_too_and_what_is_far_worse_at_the_edge() -> None:
    table = nats(("generative", 0.3), ("bilinear", 0.9), ("lens", 6.25), ("density", float("nan")))
    table = pd.concat([table, nats(("baseline:marginal", 1.2), ("baseline:candidate-only", 1.1))], ignore_index=True)
    axes = drawn(rungs_figure(table, title="t")).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["bilinear", "LoRA, generative", "logit lens", "candidates alone", "marginal"]
    shown = [c.lines[0] for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert [float(line.get_xdata()[0]) for line in shown] == [0.9, 0.3, 1.1, 1.2]
    assert [text.get_text() for text in axes.texts] == ["6.25"]
    assert axes.get_xlabel() == "KL gap, nats"
    assert axes.get_xlim()[1] < 2


def test_nothing_to_show_and_rows_that_stand_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="no rung to show"):
        rungs_figure(frame(("p", "baseline:marginal", "", 0.0)), title="t")
    with pytest.raises(ValueError, match="expected one per position and rung"):
        rungs_figure(frame(("p", "linear", "a", 0.1), ("p", "linear", "b", 0.2)), title="t")


def test_rungs_are_taken_at_one_layer_and_what_reads_none_stays() -> None:
    table = frame(
        ("p", "linear", "blocks.0.hook_resid_post", 0.1),
        ("p", "linear", LAST, 0.2),
        ("p", "mlp", "blocks.0.hook_resid_post", 0.3),
        ("p", "lens", "blocks.0.hook_resid_post", 0.4),
        ("p", "lens", LAST, 0.5),
        ("p", "lora", "whole model", 0.6),
        ("q", "linear", LAST, 0.7),
    )
    kept = at_layer(table, LAST)
    assert list(zip(kept["position"], kept["rung"], kept["explained"], strict=True)) == [
        ("p", "linear", 0.2),
        ("p", "lens", 0.5),
        ("p", "lora", 0.6),
        ("q", "linear", 0.7),
    ]
    bilinear = table.assign(rung=table["rung"].replace("linear", "bilinear"))
    assert list(at_layer(bilinear, LAST)["explained"]) == [0.2, 0.5, 0.6, 0.7]
