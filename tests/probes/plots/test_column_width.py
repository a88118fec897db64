"""Every figure can be read at the width of a column and at its own, with names as long as real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from probes.plots.commitment import commitment_curve
from probes.plots.dose_response import dose_response
from probes.plots.heatmaps import layer_position_map, transfer_matrix
from probes.plots.layer_curve import layer_curve
from probes.plots.learning_curve import learning_curve_figure
from probes.plots.predictability import emergence_curve, predictability_scatter
from probes.plots.rungs_figure import rungs_figure
from probes.plots.semantics_scatter import semantics_scatter
from probes.transfer.across_runs import TransferCell
from semcal.calibration.estimators.finite_m import MCurve
from semcal.calibration.inference.bootstrap import Interval
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.curves import by_model, knowing_curve, m_curve_figure, risk_coverage_curve
from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.plots.reliability_diagram import reliability_diagram, reliability_grid, smoothed
from semcal.calibration.plots.sheet import COLUMN
from tests.readable import complaints

pytestmark = pytest.mark.long

TITLE = "gemma-3-270m-instruct · lre-person_plays_pro_sport · concise · mention"
LAYERS = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(18))]
POSITIONS = ["last_question_token", "last_prompt_token", "chain_25", "chain_50", "chain_75", "before_answer"]
MODELS = ["gemma-3-270m", "gemma-3-270m-it", "smollm2-135m", "smollm2-135m-instruct"]
DATASETS = ["triviaqa", "lre-landmark_in_country", "lre-person_plays_pro_sport"]
RNG = np.random.default_rng(0)
SURE = RNG.integers(0, 21, 200) / 20
RIGHT = (RNG.random(200) < SURE).astype(float)


def spread(value: np.ndarray, name: str, *ends: str) -> dict[str, np.ndarray]:
    low, high = ends or (f"{name}_low", f"{name}_high")
    return {name: value, low: value - 0.03, high: value + 0.04}


def of_layers(layers: list[str], **more: object) -> pd.DataFrame:
    fall = np.linspace(1.9, 0.2, len(layers))
    table = {"layer": layers, "rung": "linear", "target": "classes", "measure": "kl_explained", "gap_floor": 0.03}
    table |= spread(fall, "gap") | spread(1 - fall / 2, "explained", "low", "high")
    return pd.DataFrame(table | {"control": 0.02, "null_q95": 0.03, "ceiling": 0.97} | more)


def of_runs() -> pd.DataFrame:
    names = [(m, d, s) for m in MODELS for d in DATASETS for s in ("cot", "concise")]
    n = np.arange(len(names))
    table = pd.DataFrame({"label": [" · ".join(name) for name in names], "style": [s for *_, s in names]})
    figures = spread(n / 20, "gap") | spread(n / 200, "excess")
    return table.assign(
        model=[m for m, *_ in names],
        kin=[m for m, *_ in names],
        place=[" · ".join(rest) for _, *rest in names],
        line=[f"{d} · {s}" for _, d, s in names],
        proper=n % 3 > 0,
        fitted=n % 3 > 0,
        **figures,
    )


def of_models() -> pd.DataFrame:
    table = of_runs()
    return table.assign(**spread(table["excess"] + 0.3, "accuracy"), **spread(table["excess"] - 0.1, "signed_gap"))


def of_answers() -> pd.DataFrame:
    rows = [(str(q), i, min(1.0, 0.2 + 0.02 * i + q / 20)) for q in range(8) for i in range(40)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])


def of_doses() -> pd.DataFrame:
    rows = [{"kind": "ablate", "rank": r, "control": c} for r in (1, 2, 4, 8) for c in ("", "isotropic", "matched")]
    rows.append({"kind": "none", "rank": 0, "control": ""})
    values = {
        k: v for c in ("tv", "d_confidence", "d_accuracy") for k, v in spread(np.linspace(0.1, 0.4, 13), c).items()
    }
    return pd.DataFrame(rows).assign(name="another seed", hook="blocks.17.hook_resid_post", size=0.0, **values)


def of_rungs(width: float | None) -> Figure:
    rungs = [
        "linear",
        "bilinear",
        "generative",
        "lora",
        "baseline:marginal",
        "baseline:tfidf",
        "baseline:candidate-only",
    ]
    rows = pd.DataFrame([(p, r) for p in POSITIONS[:4] for r in rungs], columns=["position", "rung"])
    return rungs_figure(
        rows.assign(gap_floor=0.05, **spread(np.linspace(0, 2, len(rows)), "gap")), title=TITLE, width=width
    )


def of_positions(width: float | None) -> Figure:
    rows = pd.concat([of_layers(LAYERS, position=p) for p in POSITIONS])
    return layer_position_map(rows, title=TITLE, width=width)


def of_transfer(width: float | None) -> Figure:
    names = ["gemma-3-270m · triviaqa", "gemma-3-270m · popqa", "gemma-3-270m · simpleqa"]
    figures = (0.2, 0.18, 0.24, 0.1, 0.3, 0.1, 1.5, 1.3, 1.2, 1.4, 0.01, 1.0, 10)
    cells = [TransferCell(a, b, *figures) for a in names for b in names]
    return transfer_matrix(cells, title=TITLE, without="marginal", width=width)


def of_profile(width: float | None) -> Figure:
    figures = (200, 0.4, 0.5, -0.1, 0.06, 0.04, 0.08, 0.03, 0.05, 0.03, 0.002)
    rows = [ProfileRow(name, 12.3, *figures) for name in ("first token", "length in words", "meaning (mention)")]
    return calibration_profile(rows, title=TITLE, delta=0.05, width=width)


def of_m(width: float | None) -> Figure:
    m = np.array([2, 5, 10, 20, 30, 40, 50])
    limits = {"confidence": 0.6, "accuracy": 0.5, "signed_gap": -0.1, "smece": 0.04}
    ends = {name: Interval(x, x - 0.03, x + 0.03, np.array([x])) for name, x in limits.items()}
    return m_curve_figure(
        MCurve(m, 0.6 + 1 / m, 0.5 - 0.1 / m, 1 / m, 0.04 + 1 / m, 0.05 + 1 / m, ends), title=TITLE, width=width
    )


def of_reliability(width: float | None) -> Figure:
    counts = RNG.multinomial(20, [0.5, 0.3, 0.2], 200)
    band = null_band(counts, bandwidth=0.1, null_draws=10, seed=0)
    return reliability_diagram(SURE, RIGHT, title=TITLE, null_band=band, width=width)


def of_grid(width: float | None) -> Figure:
    shown = {(d, m): smoothed(SURE, RIGHT) for d in DATASETS for m in MODELS[:2] if (d, m) != (DATASETS[-1], MODELS[1])}
    return reliability_grid(shown, title=TITLE, width=width)


def of_probed() -> pd.DataFrame:
    return pd.DataFrame({"share": [0.0, 0.25, 0.5, 1.0]} | spread(np.array([1.2, 0.9, 0.5, 0.1]), "gap"))


def of_learning(width: float | None) -> Figure:
    curve = {"rung": "generative", "questions": [60, 120, 240, 480], "held_out": 200}
    table = pd.DataFrame(curve | spread(np.array([2.0, 1.4, 0.9, 0.8]), "gap"))
    return learning_curve_figure(table, title=TITLE, marginal=2.4, width=width)


def of_sweep(width: float | None) -> Figure:
    table = of_runs().assign(b="b", kind=["meaning", "coarser", "first letters", "random partition"] * 6)
    corner = "Spearman ρ = 0.62 [0.41, 0.80], 62 Bs"
    return semantics_scatter(table, title=TITLE, corner=corner, small_gap=0.1, delta=0.05, width=width)


LIMITS = {"delta": 0.05, "small_gap": 0.1}
BASELINES = pd.DataFrame({"rung": ["baseline:marginal", "baseline:tfidf"], "gap": [2.0, 1.6]})
STEPS = [0, 16, 64, 256, 1024, 4096]
FIGURES: dict[str, Callable[[float | None], Figure]] = {
    "reliability": of_reliability,
    "grid": of_grid,
    "risk-coverage": lambda w: risk_coverage_curve({TITLE: (SURE, RIGHT)}, title=TITLE, width=w),
    "m-curve": of_m,
    "profile": of_profile,
    "knowing": lambda w: knowing_curve({"cot": of_answers(), "concise": of_answers()}, title=TITLE, width=w),
    "models": lambda w: by_model(of_models(), title=TITLE, delta=0.05, width=w),
    "layers": lambda w: layer_curve(of_layers(LAYERS), BASELINES, title=TITLE, width=w),
    "positions": of_positions,
    "rungs": of_rungs,
    "learning": of_learning,
    "commitment": lambda w: commitment_curve(of_answers(), of_probed(), title=TITLE, width=w),
    "dose": lambda w: dose_response(of_doses(), title=TITLE, width=w),
    "transfer": of_transfer,
    "predictability": lambda w: predictability_scatter(
        of_runs(), title=TITLE, probe="bilinear probe", width=w, **LIMITS
    ),
    "predictability of short names": lambda w: predictability_scatter(
        of_runs()[:6].assign(label="atlas-routes · sentence"), title=TITLE, probe="linear probe", width=w, **LIMITS
    ),
    "emergence": lambda w: emergence_curve(
        pd.concat([of_runs().assign(step=s, lineage="") for s in STEPS]),
        title=TITLE,
        probe="bilinear probe",
        width=w,
        **LIMITS,
    ),
    "sweep": of_sweep,
}


@pytest.mark.parametrize("width", [None, COLUMN], ids=["own", "column"])
@pytest.mark.parametrize("name", FIGURES)
def test_every_text_can_be_read(name: str, width: float | None) -> None:
    figure = FIGURES[name](width)
    assert complaints(figure) == []
    if width is not None:
        assert figure.get_figwidth() == width
