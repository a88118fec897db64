from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from probes.plots.shares import layer_curve

from probes.evaluation.result import COLUMNS


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
    (axes,) = layer_curve(frame_of(layers), title="a run").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["embed", "0", "1", "2", "3", "4"]
    assert axes.get_title(loc="left") == "a run"
    assert axes.get_ylabel() == "share of KL explained"


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
