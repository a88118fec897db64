"""The figures of one run, from what its folder holds."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.answers import class_matrix
from experiments.config import Cell
from experiments.report.table import linear
from probes.figures import layer_curve
from semcal.calibration import (
    confidences,
    confidences_of_masses,
    m_curve_figure,
    null_band,
    reliability_diagram,
    risk_coverage_curve,
)
from semcal.calibration.mcurve import curve_of_rows
from semcal.calibration.profile import ProfileRow, calibration_profile
from semcal.places import LAST_PROMPT_TOKEN
from semcal.semantics.figures import knowing_curve
from semcal.store import Run


def run_figures(cell: Cell, run: Run) -> dict[str, Figure]:
    """The pictures of a run by name, in the order in which the page shows them."""
    matrix = class_matrix(run.classes())
    sampled = cell.sampling.exact is None
    scored = (confidences if sampled else confidences_of_masses)(matrix.counts, matrix.gold, matrix.unparsed)
    width = float(run.calibration()["bandwidth"])
    band = null_band(matrix.counts, bandwidth=width, level=cell.calibration.level, seed=cell.seed) if sampled else None
    figures = {
        "reliability": reliability_diagram(
            scored.plug_in,
            scored.correct,
            title=cell.label,
            null_band=band,
            group=run.questions()["group"].to_numpy(),
            level=cell.calibration.level,
            seed=cell.seed,
        ),
    }
    pairs = {cell.label: (scored.plug_in, scored.correct)}
    group = run.questions()["group"].to_numpy()
    figures["risk-coverage"] = risk_coverage_curve(pairs, title=cell.label, group=group, seed=cell.seed)
    calibration = run.calibration()
    if rows := calibration.get("m_curve"):
        figures["m-curve"] = m_curve_figure(curve_of_rows(rows), title=cell.label)
    if rows := calibration.get("profile"):
        figures["profile"] = calibration_profile([ProfileRow(**row) for row in rows], title=cell.label)
    intermediate = run.intermediate()
    if not intermediate.empty:
        figures["knowing"] = knowing_curve({cell.style: intermediate}, title=cell.label)
    probes = linear(run.probes())
    if not probes.empty:
        first = probes.loc[probes["target"] == probes["target"].iloc[0], :]
        shown = LAST_PROMPT_TOKEN if LAST_PROMPT_TOKEN in set(first["position"]) else first["position"].iloc[0]
        title = cell.label if shown == LAST_PROMPT_TOKEN else f"{cell.label} · {shown}"
        figures["layers"] = layer_curve(first.loc[first["position"] == shown, :], title=title)
    return figures
