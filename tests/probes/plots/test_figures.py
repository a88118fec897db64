from io import BytesIO

import numpy as np
import pandas as pd
import pytest

from probes.evaluation.result import COLUMNS
from probes.plots.layer_curve import layer_curve
from probes.plots.semantics_scatter import semantics_scatter
from semcal.semantics.collapsing.coarser import CLUSTERS, MEANING, coarsenings


def frame_of(layers: list[str], **columns: object) -> pd.DataFrame:
    n = len(layers)
    explained = np.linspace(0, 0.8, n)
    base = {"target": "classes", "layer": layers, "measure": "kl_explained", "explained": explained}
    base |= {
        "low": explained - 0.05,
        "high": explained + 0.05,
        "control": np.zeros(n),
        "null_q95": 0.02,
        "ceiling": 0.9,
    }
    return pd.DataFrame(base | columns).reindex(columns=COLUMNS)


def test_layers_are_named_shortly_and_in_order() -> None:
    layers = ["hook_embed", *[f"blocks.{i}.hook_resid_post" for i in range(5)]]
    figure = layer_curve(frame_of(layers), title="a run")
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["embed", "0", "1", "2", "3", "4"]
    assert figure.get_suptitle() == "a run"
    assert axes.get_ylabel() == "share of KL explained"


def test_layers_are_drawn_by_number_whatever_the_order_of_the_rows() -> None:
    layers = [f"blocks.{i}.hook_resid_post" for i in (10, 2, 1, 11, 0)]  # as text, 10 comes before 2
    (axes,) = layer_curve(frame_of(layers, explained=[1.0, 0.2, 0.1, 1.1, 0.0])).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "10", "11"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.0, 0.1, 0.2, 1.0, 1.1])


def test_what_the_first_block_reads_is_the_embedding_and_comes_first() -> None:
    layers = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"]
    (axes,) = layer_curve(frame_of(layers)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["embed", "0", "1"]


def gaps(n: int) -> dict[str, object]:
    gap = np.linspace(1.4, 0.2, n)
    return {"gap": gap, "gap_low": gap - 0.1, "gap_high": gap + 0.1, "gap_floor": 0.03}


def baselines(**nats: float) -> pd.DataFrame:
    return pd.DataFrame({"rung": [f"baseline:{name.replace('_', '-')}" for name in nats], "gap": list(nats.values())})


def test_above_are_nats_and_below_the_share_explained() -> None:
    frame = frame_of(["a", "b", "c"], **gaps(3))
    upper, lower = layer_curve(frame, title="t").axes
    assert upper.get_ylabel() == "KL gap, nats"
    np.testing.assert_allclose(upper.lines[0].get_ydata(), frame["gap"])
    assert upper.get_ylim()[0] < 0 < 1.4 < upper.get_ylim()[1]
    assert lower.get_ylabel() == "share of KL explained"
    pooled = layer_curve(frame.assign(pooled=0.034), title="t").axes[1]
    assert pooled.get_ylabel() == "share of KL explained (3.4 % pooled)"
    np.testing.assert_allclose(lower.lines[0].get_ydata(), frame["explained"])


def test_where_much_is_pooled_only_nats_are_shown() -> None:
    frame = frame_of(["a", "b"], **gaps(2), explained=np.nan, low=np.nan, high=np.nan, control=np.nan)
    (axes,) = layer_curve(frame, title="t").axes
    assert axes.get_ylabel() == "KL gap, nats"
    with pytest.raises(ValueError, match="neither a KL gap nor a share explained"):
        layer_curve(frame.assign(gap=np.nan), title="t")


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ({"marginal": 2.0, "tfidf": 1.1}, {"marginal, the same for all questions": 2.0, "TF-IDF and length": 1.1}),
        ({"marginal": 2.0, "candidate_only": 1.7}, {"candidates alone, no activations": 1.7}),
        ({"random_init": 9.0, "tfidf": float("nan")}, {}),
    ],
)
def test_baselines_are_lines(known: dict[str, float], shown: dict[str, float]) -> None:
    frame = frame_of(["a", "b", "c"], **gaps(3))
    axes = layer_curve(frame, baselines(**known), title="t").axes[0]
    drawn = {str(line.get_label()): np.ravel(line.get_ydata())[0] for line in axes.lines[1:]}
    assert {name: y for name, y in drawn.items() if not name.startswith("_")} == shown
    assert max([1.4, *shown.values()]) < axes.get_ylim()[1] < 2.5


def test_a_linear_probe_is_read_against_the_marginal_though_candidates_were_fitted_too() -> None:
    frame = frame_of(["a", "b", "c"], **gaps(3), rung="linear")
    axes = layer_curve(frame, baselines(marginal=2.0, candidate_only=1.7), title="t").axes[0]
    assert "marginal, the same for all questions" in axes.get_legend_handles_labels()[1]
    assert not any(label.startswith("candidates") for label in axes.get_legend_handles_labels()[1])


@pytest.mark.parametrize("absent", [["control"], ["null_q95", "ceiling"], ["control", "null_q95", "ceiling"]])
def test_a_legend_lists_what_is_drawn_and_nothing_else(absent: list[str]) -> None:
    names = {"control": "control task", "null_q95": "95 % of the null", "ceiling": "noise ceiling"}
    figure = layer_curve(frame_of(["a", "b", "c"], **gaps(3), **dict.fromkeys(absent, np.nan)), title="t")
    listed = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for column, name in names.items():
        assert any(entry.startswith(name) for entry in listed) == (column not in absent), name
    assert not any("marginal" in entry or "TF-IDF" in entry for entry in listed)


@pytest.mark.parametrize("columns", [{}, {"null_q95": np.nan, "ceiling": np.nan, "measure": "r2"}])
@pytest.mark.parametrize("depth", [1, 40])
def test_a_figure_is_drawn_with_or_without_null_and_ceiling(columns: dict[str, object], depth: int) -> None:
    layers = [f"blocks.{i}.hook_resid_post" for i in range(depth)]
    buffer = BytesIO()
    layer_curve(frame_of(layers, **columns), title="t").savefig(buffer, format="png")
    assert buffer.tell() > 1000


def test_one_target_a_figure() -> None:
    with pytest.raises(ValueError, match="2 targets"):
        layer_curve(frame_of(["a", "b"], target=["classes", "entropy"]), title="t")


def test_no_two_kinds_of_b_are_drawn_alike() -> None:
    kinds = [MEANING, *dict.fromkeys(b.kind for b in coarsenings() if b.kind != MEANING), CLUSTERS]
    columns = {name: np.linspace(0.0, 0.2, len(kinds)) for name in ("gap", "gap_low", "gap_high")}
    columns |= {name.replace("gap", "excess"): values for name, values in columns.items()}
    figure = semantics_scatter(pd.DataFrame({"b": kinds, "kind": kinds} | columns), small_gap=0.1, delta=0.05)
    drawn = [line for line in figure.axes[0].lines if line.get_label() in {*kinds, "the run's own B"}]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == len(kinds) == 8
