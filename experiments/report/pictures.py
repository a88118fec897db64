"""The figures of one run, from what its folder holds."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.config.study import Cell
from experiments.report.probe_pictures import probe_figures
from semcal.calibration.estimators.m_curve import curve_of_rows
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.curves import m_curve_figure, risk_coverage_curve
from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.plots.reliability_diagram import reliability_diagram
from semcal.runs.run import Run
from semcal.semantics.knowing_curve import knowing_curve


def run_figures(cell: Cell, run: Run) -> dict[str, Figure]:
    """The pictures of a run by name, in the order in which the page shows them."""
    classes = run.class_table()
    scored, width, band = classes.by_count, float(run.calibration()["bandwidth"]), None
    if classes.counts is not None:
        band = null_band(classes.counts, bandwidth=width, level=cell.calibration.level, seed=cell.seed)
    figures = {
        "reliability": reliability_diagram(
            scored.plug_in,
            scored.correct,
            title=cell.label,
            null_band=band,
            group=classes.groups,
            level=cell.calibration.level,
            seed=cell.seed,
        ),
    }
    pairs = {cell.label: (scored.plug_in, scored.correct)}
    figures["risk-coverage"] = risk_coverage_curve(pairs, title=cell.label, group=classes.groups, seed=cell.seed)
    calibration = run.calibration()
    if rows := calibration.get("m_curve"):
        figures["m-curve"] = m_curve_figure(curve_of_rows(rows), title=cell.label)
    if rows := calibration.get("profile"):
        figures["profile"] = calibration_profile([ProfileRow(**row) for row in rows], title=cell.label)
    intermediate = run.intermediate()
    if not intermediate.empty:
        figures["knowing"] = knowing_curve({cell.style: intermediate}, title=cell.label)
    return figures | probe_figures(cell, run)
