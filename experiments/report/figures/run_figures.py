"""The figures of one run, from the files in its folder: calibration, then probes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.compare.probe_rows import layer_rows, probe_table
from experiments.config.study import Cell
from probes.evaluation.result import BASELINE, LAYER_RUNGS, at_layer
from probes.plots.commitment import commitment_curve
from probes.plots.heatmaps import layer_position_map
from probes.plots.layer_curve import layer_curve
from probes.plots.learning_curve import learning_curve_figure
from probes.plots.measures import measure_of
from probes.plots.rungs_figure import MARGINAL, rungs_figure
from semcal.calibration.estimators.finite_m import curve_of_rows
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.curves import knowing_curve, m_curve_figure, risk_coverage_curve
from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.plots.reliability_diagram import reliability_diagram
from semcal.positions import BEFORE_ANSWER, LAST_PROMPT_TOKEN, nominal_place
from semcal.runs.run import Run


def run_reliability(cell: Cell, run: Run) -> Figure:
    """The reliability diagram of a run."""
    classes = run.class_table()
    scored, band = classes.by_count, None
    if classes.counts is not None:
        width = float(run.calibration()["bandwidth"])
        band = null_band(classes.counts, bandwidth=width, level=cell.calibration.level, seed=cell.seed)
    return reliability_diagram(
        scored.plug_in,
        scored.correct,
        title=cell.label,
        null_band=band,
        group=classes.groups,
        level=cell.calibration.level,
        seed=cell.seed,
    )


def run_figures(cell: Cell, run: Run) -> dict[str, Figure]:
    """The figures of a run by name, in the order in which the page shows them."""
    classes = run.class_table()
    calibration, scored = run.calibration(), classes.by_count
    pairs = {cell.label: (scored.plug_in, scored.correct)}
    figures = {
        "reliability": run_reliability(cell, run),
        "risk-coverage": risk_coverage_curve(pairs, title=cell.label, group=classes.groups, seed=cell.seed),
    }
    if rows := calibration.get("m_curve"):
        figures["m-curve"] = m_curve_figure(curve_of_rows(rows), title=cell.label)
    if rows := calibration.get("profile"):
        figures["profile"] = calibration_profile([ProfileRow(**row) for row in rows], title=cell.label)
    intermediate = run.intermediate()
    if not intermediate.empty:
        figures["knowing"] = knowing_curve({cell.style: intermediate}, title=cell.label)
    return figures | probe_figures(cell, run)


def probe_figures(cell: Cell, run: Run) -> dict[str, Figure]:
    """Figures of the probes by name (layers, layers-positions, rungs, learning, commitment), for the classes,
    or for the first target if that was not probed."""
    probes = probe_table(run)
    if probes.empty:
        return {}
    targets = list(dict.fromkeys(probes["target"]))
    target = "classes" if "classes" in targets else targets[0]
    probes = probes.loc[probes["target"] == target, :]
    lines = layer_rows(probes)
    known = not lines.empty and measure_of(lines).known(lines)
    figures = _by_layer(cell, lines, probes.loc[probes["rung"].str.startswith(BASELINE), :]) if known else {}
    figures |= _by_rung(cell, probes, list(dict.fromkeys(lines["layer"])))
    if target == "classes" and not (curve := run.learning_curve()).empty:
        marginal = float(probes.loc[probes["rung"] == MARGINAL, "gap"].max())
        figures["learning"] = learning_curve_figure(curve, title=cell.label, marginal=marginal)
    if target == "classes" and known:
        figures |= _commitment(cell, run, lines.loc[lines["layer"] == lines["layer"].iloc[-1], :])
    return figures


def _by_layer(cell: Cell, lines: pd.DataFrame, baselines: pd.DataFrame) -> dict[str, Figure]:
    """Probes of one target over layers: at the last prompt token if captured, and at all positions."""
    positions = list(dict.fromkeys(lines["position"]))
    shown = LAST_PROMPT_TOKEN if LAST_PROMPT_TOKEN in positions else positions[0]
    title = cell.label if shown == LAST_PROMPT_TOKEN else f"{cell.label} · {shown}"
    here, beside = (frame.loc[frame["position"] == shown, :] for frame in (lines, baselines))
    figures = {"layers": layer_curve(here, beside, title=title)} if measure_of(here).known(here) else {}
    if len(positions) > 1:
        title = f"{cell.label} · {lines['rung'].iloc[0]} probes"
        marginal = baselines.loc[baselines["rung"] == MARGINAL, "gap"].max()
        figures["layers-positions"] = layer_position_map(lines, title=title, marginal=marginal)
    return figures


def _by_rung(cell: Cell, probes: pd.DataFrame, layers: list[str]) -> dict[str, Figure]:
    """All rungs at the last layer that has both probes of every layer and a rung above them."""
    fitted = probes.loc[~probes["rung"].str.startswith(BASELINE), :].dropna(subset=[measure_of(probes).value])
    if fitted["rung"].nunique() < 2:
        return {}
    above = set(fitted.loc[~fitted["rung"].isin(LAYER_RUNGS), "layer"])
    layer = next((name for name in reversed(layers) if name in above), layers[-1] if layers else "")
    where = "last layer" if not layers or layer == layers[-1] else layer
    return {"rungs": rungs_figure(at_layer(probes, layer), title=f"{cell.label} · {where}")}


def _commitment(cell: Cell, run: Run, lines: pd.DataFrame) -> dict[str, Figure]:
    """Along the answer, by its share or by tokens as the positions are given; two figures if both occur."""
    intermediate, positions = run.intermediate(), list(lines["position"])
    places = [nominal_place(p) for p in positions]
    units = [unit for unit in ("share", "token") if any(place.get(unit, 0) > 0 for place in places)]
    if not units and BEFORE_ANSWER in positions:
        units = ["share"]
    if not units or intermediate.empty:  # served models report no tokens
        return {}
    measured = _before_answer(run) if BEFORE_ANSWER in positions else {}
    found = []
    for unit in units:
        at = [(measured if p == BEFORE_ANSWER else place).get(unit) for p, place in zip(positions, places, strict=True)]
        probed = lines.assign(**{unit: at}).dropna(subset=[unit]).drop_duplicates(unit)  # chain_0 ends the prompt, too
        named = probed.assign(name=np.where(probed["position"] == BEFORE_ANSWER, "before the answer", ""))
        title = f"{cell.label}\n{lines['rung'].iloc[0]} probes, last layer"
        found.append(commitment_curve(intermediate, named, title=title))
    return dict(zip(("commitment", "commitment-tokens"), found, strict=False))


def _before_answer(run: Run) -> dict[str, float]:
    """Where the answering phrase begins: mean share of the answer and mean number of tokens; empty if none has one."""
    stored = run.activations(BEFORE_ANSWER)
    if not len(stored.samples) or stored.token_index.min() < 0:
        return {}
    read = stored.token_index - (run.questions()["prompt_tokens"].to_numpy()[stored.present] - 1)
    length = run.samples()["token_ids"].iloc[stored.samples].map(len).to_numpy()
    return {"share": float(np.mean(read / length)), "token": float(read.mean())}
