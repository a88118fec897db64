"""The figures of one run, from what its folder holds."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.config.study import Cell
from experiments.report.probe_pictures import probe_figures
from experiments.score.read_answers import class_matrix
from semcal.calibration.estimators.m_curve import curve_of_rows
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.curves import m_curve_figure, risk_coverage_curve
from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.plots.reliability_diagram import reliability_diagram
from semcal.runs.run import Run
from semcal.semantics.confidence import confidences, confidences_of_masses
from semcal.semantics.knowing_curve import knowing_curve


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
    return figures | probe_figures(cell, run)
