"""The figures of one run by the names of their files: calibration, then probes, then interventions."""

from matplotlib.figure import Figure

from experiments.config.settings import slug
from probes.plots.probe_plots import plot
from semcal.runs.run import Run

_FILES = {"positions": "layers-positions"}


def run_figures(run: Run, width: float | None = None) -> dict[str, Figure]:
    """The figures of a run in the order in which the page shows them; `width` in inches, None for their own."""
    probed = plot(run)
    figures = run.plot.figures(width=width) | probed.figures(width=width)
    if len(probed.units()) > 1:
        figures["commitment-tokens"] = probed.commitment(unit="token", width=width)
    return {_FILES.get(name, name.replace("_", "-")): figure for name, figure in figures.items()}


def intervention_figures(run: Run, width: float | None = None) -> dict[str, Figure]:
    """One figure per kind, hook and position of a run's interventions."""
    return {slug(name): figure for name, figure in plot(run).interventions(width=width).items()}
