"""The figure shows every control, and what re-sampling alone does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probes.plots.dose_response import dose_response


def frame_of(kind: str, doses: list, controls: tuple[str, ...] = ("isotropic", "matched")) -> pd.DataFrame:
    dose = {"ablate": "rank", "steer": "size", "patch": "name"}[kind]
    rows = []
    for d in doses:
        for control in ("", *controls):
            for draw in range(5 if control else 1):
                labels = {"kind": kind, "name": "probe", "hook": "blocks.1.hook_resid_post", "rank": 0, "size": 0.0}
                rows.append(labels | {dose: d, "control": control, "draw": draw})
    rows.append({"kind": "none", "name": "another seed", "hook": "", "rank": 0, "size": 0.0, "control": "", "draw": 0})
    values = {c: np.linspace(0.1, 0.4, len(rows)) for c in ("tv", "d_confidence", "d_accuracy")}
    values |= {f"{c}_{end}": v + s for c, v in values.items() for end, s in (("low", -0.05), ("high", 0.05))}
    return pd.DataFrame(rows).assign(**values)


@pytest.mark.parametrize(("kind", "doses"), [("ablate", [1, 4, 16]), ("steer", [-2.0, 2.0]), ("patch", ["up", "down"])])
def test_every_control_is_a_mark_beside_its_intervention(kind, doses):
    frame = frame_of(kind, doses, ("donors",) if kind == "patch" else ("isotropic", "matched"))
    figure = dose_response(frame, title="a run")
    controls = frame[frame["control"] != ""]
    for axes in figure.axes:
        assert sum(
            len(c.get_offsets()) for c in axes.collections if hasattr(c, "get_offsets") and c.get_label()[0] != "_"
        ) == len(controls)
        assert len(axes.get_xticks()) == len(doses)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "left alone, another seed" in said
    assert sum(label.startswith("random, ") for label in said) == controls["control"].nunique()


def test_one_kind_and_one_hook_a_figure():
    both = pd.concat([frame_of("ablate", [1]), frame_of("steer", [1.0])])
    with pytest.raises(ValueError, match="2 kinds and hooks"):
        dose_response(both, title="a run")
