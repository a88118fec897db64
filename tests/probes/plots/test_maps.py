"""Heat maps, the scatter over runs and the commitment curve show what they were given."""

import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from probes.plots.commitment import commitment_curve
from probes.plots.heatmaps import layer_position_map, transfer_matrix
from probes.plots.predictability import predictability_scatter
from probes.transfer.across_runs import TransferCell
from semcal.calibration.inference.errors_in_variables import slope


def drawn(figure: Figure) -> Figure:
    figure.savefig(BytesIO(), format="png")
    return figure


def cell(trained: str, tested: str, gap: float) -> TransferCell:
    return TransferCell(
        *(trained, tested, gap, gap - 0.02, gap + 0.02, gap - 0.1, gap + 0.1, gap / 2),
        *(1.5, 1.5 - gap, 1.4 - gap, 1.6 - gap, 0.01, 1.0, 10),
    )


def test_the_matrix_holds_every_value_with_its_interval() -> None:
    values = {("a", "a"): 0.8, ("a", "b · cot"): 2.3, ("b · cot", "a"): float("nan"), ("b · cot", "b · cot"): 40.0}
    cells = [cell(*pair, value) for pair, value in values.items()]
    figure = drawn(transfer_matrix(cells, title="t", without="marginal"))
    axes = figure.axes[0]
    written = [text.get_text() for text in axes.texts]
    assert written[:2] == ["0.80 [0.78, 0.82]\nadds 0.70", "2.30 [2.28, 2.32]\nadds −0.80"]
    assert written[2:] == ["— [—, —]\nadds —", "40.00 [39.98, 40.02]\nadds −38.50"]
    np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan).ravel(), list(values.values()))
    below = ["a\n(marginal: 1.50)", "b\ncot\n(marginal: 1.50)"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == below
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tested on", "trained on")
    hatched = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert hatched == [(0.5, -0.5), (0.5, 0.5)]  # where activations mislead
    image = axes.images[0]
    shades = image.cmap(image.norm([0.0, 0.8, 1.5, 40.0]))[:, :3].mean(1)
    assert shades[0] < shades[1] < shades[2] == shades[3] == 1.0
    with pytest.raises(ValueError, match="3 cells of 2 runs"):
        transfer_matrix(cells[:3], title="t", without="marginal")


def test_layers_go_upwards_and_missing_places_stay_empty() -> None:
    rows = [
        (f"blocks.{i}.hook_resid_post", p, 0.1 * i) for p in ("last_prompt_token", "after_1_tokens") for i in (0, 1, 2)
    ]
    frame = pd.DataFrame(rows[:-1], columns=["layer", "position", "explained"])
    axes = drawn(layer_position_map(frame, title="t")).axes[0]
    low, high = axes.get_ylim()
    assert low < high  # the first layer at the bottom
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["last prompt token", "after 1 tokens"]
    assert [text.get_text() for text in axes.texts] == ["0", "0", "10", "10", "20", "—"]
    with pytest.raises(ValueError, match="of a single target"):
        layer_position_map(pd.concat([frame, frame]), title="t")


def test_a_map_of_gaps_is_dark_where_they_are_small_and_white_at_the_marginal() -> None:
    gap = [1.2, 0.6, 0.04, 1.5, -0.004, np.nan]
    rows = [(f"blocks.{i}.hook_resid_post", p, value) for (p, i), value in
            zip([(p, i) for p in ("last_prompt_token", "chain_50") for i in (0, 1, 2)], gap, strict=True)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["layer", "position", "gap"])
    axes = drawn(layer_position_map(frame, title="t", marginal=1.2)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.20", "1.50", "0.60", "0.00", "0.04", "—"]
    image = axes.images[0]
    shades = image.cmap(image.norm([0.0, 0.6, 1.2, 1.5]))[:, :3].mean(1)
    assert shades[0] < shades[1] < shades[2] == shades[3] == 1.0
    assert not any(patch.get_hatch() for patch in axes.patches)
    assert [text.get_color() for text in axes.texts][4] == "white"


def test_a_map_of_many_cells_has_colours_only() -> None:
    rows = [(f"blocks.{i}.hook_resid_post", f"after_{j}_tokens", 0.5) for i in range(60) for j in range(1, 9)]
    axes = drawn(layer_position_map(pd.DataFrame(rows, columns=["layer", "position", "explained"]), title="t")).axes[0]
    assert not axes.texts
    assert len(axes.get_yticklabels()) == 30


def runs(n: int) -> pd.DataFrame:
    x = np.linspace(0, 0.9, n)
    y = 0.1 - 0.1 * x + 0.02 * np.cos(7 * x)
    table = {"label": [f"run {i}" for i in range(n)], "style": ["concise", "cot"] * (n // 2) + ["cot"] * (n % 2)}
    table |= {"gap": x, "gap_low": x - 0.02, "gap_high": x + 0.02, "proper": True, "fitted": True, "kin": "a"}
    table |= {"place": [f"place {i}" for i in range(n)]}
    return pd.DataFrame(table | {"excess": y, "excess_low": y - 0.01, "excess_high": y + 0.03})


def test_the_scatter_marks_and_names_every_run_and_draws_a_line_from_four_on() -> None:
    table = runs(6)
    figure = drawn(predictability_scatter(table, title="t", probe="linear probe"))
    axes = figure.axes[0]
    marked = {line.get_label(): line.get_marker() for line in axes.lines if line.get_label() in ("concise", "cot")}
    assert len(set(marked.values())) == 2
    assert [text.get_text() for text in axes.texts] == list("123456")
    assert [text.get_text() for text in figure.legends[0].texts] == [f"{i + 1}  run {i}" for i in range(6)]
    line = slope(table["gap"], table["excess"], [0.04 / 3.92] * 6, [0.04 / 3.92] * 6)
    assert line.estimate < 0
    assert said(axes).startswith(f"slope −{abs(line.estimate):.3f} [−")
    assert said(axes).endswith("a nat, 6 runs, 6 places, 1 lineage")
    few = drawn(predictability_scatter(table[:3], title="t", probe="linear probe")).axes[0]
    assert said(few) == ""


def said(axes) -> str:
    return axes.get_title(loc="right").replace("\n", " ")


def test_the_slope_is_that_of_a_planted_line_and_its_error_that_of_seeds() -> None:
    """Cells of one seed are off together; one by one they would look better known than they are."""
    rng = np.random.default_rng(0)
    parts = []
    for seed in range(4):
        x = np.linspace(0, 1, 12)
        y = (0.1 + 0.05 * (seed - 1.5)) * x + rng.normal(0, 0.001, 12)
        known = {"gap_low": x - 0.002, "gap_high": x + 0.002, "excess_low": y - 0.002, "excess_high": y + 0.002}
        parts.append(
            pd.DataFrame({"gap": x, "excess": y, "kin": f"seed-{seed}", "proper": True, "fitted": True} | known)
        )
    table = pd.concat(parts, ignore_index=True).assign(label="r", style="cot")
    table["place"] = table["gap"].map("{:.2f}".format)
    widths = []
    for kin in (table["kin"], "one"):
        axes = drawn(predictability_scatter(table.assign(kin=kin), probe="p")).axes[0]
        estimate, low, high = _figures(said(axes))
        assert isinstance(kin, str) or low < 0.1 < high
        assert estimate == pytest.approx(0.1, abs=0.02)
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1]
    assert "48 runs, 12 places, 4 lineages" in said(drawn(predictability_scatter(table, probe="p")).axes[0])


def _figures(text: str) -> list[float]:
    return [float(part.replace("−", "-")) for part in re.findall(r"[+−]\d\.\d+", text)]


def test_many_runs_are_not_numbered() -> None:
    figure = drawn(predictability_scatter(runs(60), probe="linear probe"))
    assert [text.get_text() for text in figure.axes[0].texts] == []
    assert not any("run" in text.get_text() for text in figure.legends[0].texts)
    assert "60 runs" in said(figure.axes[0])


def test_runs_without_probes_are_left_out_of_the_scatter() -> None:
    table = runs(5)
    table.loc[1, "gap"] = np.nan
    figure = drawn(predictability_scatter(table, title="t", probe="linear probe"))
    assert [text.get_text()[3:] for text in figure.legends[0].texts] == ["run 0", "run 2", "run 3", "run 4"]
    with pytest.raises(ValueError, match="no run has both"):
        predictability_scatter(table.assign(excess=np.nan), title="t", probe="linear probe")


def test_tuned_models_are_hollow_and_no_part_of_the_line() -> None:
    base = runs(5).assign(excess=[0.01, 0.02, 0.03, 0.04, 0.05])
    tuned = runs(5).assign(excess=[0.5, 0.4, 0.3, 0.2, 0.1], proper=False, fitted=False)
    table = pd.concat([base, tuned], ignore_index=True)
    axes = drawn(predictability_scatter(table, title="t", probe="generative LoRA")).axes[0]
    assert said(axes).startswith("base and SFT: slope +0.0")
    assert said(axes).endswith("5 runs, 5 places, 1 lineage")
    assert axes.get_xlabel() == "KL gap of the generative LoRA, nats"
    hollow = [len(line.get_xdata()) for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert sum(hollow) == 5
    assert "hollow: not base or SFT" in [text.get_text() for text in axes.get_legend().get_texts()]
    alone = drawn(predictability_scatter(table[3:], title="t", probe="p")).axes[0]
    assert said(alone) == ""  # two base models say nothing, whatever the tuned ones do


def intermediate() -> pd.DataFrame:
    rows = [("short", 0, 0.5), ("short", 1, 0.7), ("short", 2, 1.0)]
    rows += [("long", i, g) for i, g in enumerate([0.2, 0.4, 0.6, 0.8, 1.0])]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])


def probed(place: str, at: list[float]) -> pd.DataFrame:
    explained = np.linspace(0.1, 0.8, len(at))
    return pd.DataFrame({place: at, "explained": explained, "low": explained - 0.05, "high": explained + 0.05})


def test_commitment_by_tokens_lets_an_answer_that_ended_stay() -> None:
    upper, lower = drawn(commitment_curve(intermediate(), probed("token", [0, 1, 4]), title="t")).axes
    np.testing.assert_allclose(upper.lines[0].get_ydata(), [0.35, 0.55, 0.8, 0.9, 1.0])
    (bars,) = (c for c in lower.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(bars.lines[0].get_xdata(), [0, 1, 4])
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [0.1, 0.45, 0.8])
    assert lower.get_xlabel() == "tokens generated"
    assert lower.get_ylabel() == "share of KL that\nthe probe explains"
    nats = probed("token", [0, 1, 4]).assign(gap=[1.2, 0.4, 0.1], gap_low=[1.1, 0.3, 0.0], gap_high=[1.3, 0.5, 0.2])
    _, lower = drawn(commitment_curve(intermediate(), nats, title="t")).axes
    (bars,) = (c for c in lower.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [1.2, 0.4, 0.1])
    assert lower.get_ylabel() == "KL gap of\nthe probe, nats"
    assert lower.get_ylim()[1] > 1.3


def test_commitment_by_share_brings_answers_to_one_length() -> None:
    shuffled = probed("share", [0, 0.5, 1]).iloc[::-1]
    upper, lower = drawn(commitment_curve(intermediate(), shuffled, title="t")).axes
    x, y = upper.lines[0].get_data()
    np.testing.assert_allclose(np.interp([0, 0.5, 1], x, y), [0.35, (0.7 + 0.6) / 2, 1.0])
    (bars,) = (c for c in lower.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [0.1, 0.45, 0.8])


def test_a_place_that_differs_between_questions_is_named_and_not_joined() -> None:
    table = probed("share", [0, 0.5, 0.6]).assign(name=["", "", "before the answer"])
    _, lower = drawn(commitment_curve(intermediate(), table, title="t")).axes
    joined, apart = (c for c in lower.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(joined.lines[0].get_xdata(), [0, 0.5])
    np.testing.assert_allclose(apart.lines[0].get_xdata(), [0.6])
    assert [text.get_text() for text in lower.texts] == ["before the answer"]


def test_commitment_needs_the_places_of_the_probes() -> None:
    with pytest.raises(ValueError, match="either token or share"):
        commitment_curve(intermediate(), probed("place", [0, 1]), title="t")
