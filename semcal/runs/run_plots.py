"""The figures of calibration of one run, by name and with defaults: `run.plot.reliability()`.

Knows which of the run's files each figure needs; the figures themselves are in `semcal.calibration.plots`, those of
probes in `probes.plot`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from semcal.calibration.estimators.finite_m import curve_of_rows
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.curves import knowing_curve, m_curve_figure, risk_coverage_curve
from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.plots.reliability_diagram import Smoothed, reliability_diagram, smoothed
from semcal.errors import UserError
from semcal.questions.question import CONTINUATION
from semcal.semantics.class_table import ClassTable

if TYPE_CHECKING:
    from semcal.runs.run import Run


class LacksError(UserError):
    """A run lacks what a figure is drawn from."""


@dataclass(frozen=True)
class RunPlots:
    """Every figure of calibration that a scored run has, as a Matplotlib Figure that belongs to no window:

    >>> figure = semcal.Run.open(folder).plot.reliability(width=3.25)
    >>> float(figure.get_figwidth())
    3.25

    Every method takes `title` (by default model, dataset, style and B; "" for none) and `width` (inches, by default the
    figure's own; 3.25 is a column of a paper). Level and seed are those that the run was scored with.
    """

    run: Run

    def reliability(self, *, title: str | None = None, seed: int | None = None, width: float | None = None) -> Figure:
        """Accuracy against B-confidence, with its band and that of a calibrated model; see `reliability_diagram`.

        Raises:
            UserError: the run was not scored yet.
        """
        pairs, settings = self._scored().by_count, self._band_settings(self._seed(seed))
        return reliability_diagram(pairs.plug_in, pairs.correct, title=self.title(title), width=width, **settings)

    def smoothed(self) -> Smoothed:
        """What `reliability` shows, for diagrams of several runs; see `reliability_grid`.

        Raises:
            UserError: the run was not scored yet.
        """
        pairs = self._scored().by_count
        return smoothed(pairs.plug_in, pairs.correct, **self._band_settings(self._seed(None)))

    def risk_coverage(self, *, title: str | None = None, seed: int | None = None, width: float | None = None) -> Figure:
        """Error rate among the most confident answers; see `risk_coverage_curve`.

        Raises:
            UserError: the run was not scored yet.
        """
        classes = self._scored()
        pairs = {self.title(None): (classes.by_count.plug_in, classes.by_count.correct)}
        settings = {"group": classes.groups, "level": self._level(), "seed": self._seed(seed)}
        return risk_coverage_curve(pairs, title=self.title(title), width=width, **settings)

    def m_curve(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """Estimates from random subsets of the samples; see `m_curve_figure`.

        Raises:
            LacksError: the run has no M-curve: it was enumerated, or not scored yet.
        """
        rows = self._figures("m_curve", "M-curve (answers that were enumerated have none)")
        return m_curve_figure(curve_of_rows(rows), title=self.title(title), width=width)

    def profile(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """The same samples under other collapsing functions; see `calibration_profile`.

        Raises:
            LacksError: the run has no profile: it was scored without.
        """
        rows = [ProfileRow(**row) for row in self._figures("profile", "profile")]
        return calibration_profile(rows, title=self.title(title), delta=self.delta, width=width)

    def knowing(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """How decided the answer is after so many tokens; see `knowing_curve`.

        Raises:
            LacksError: the run keeps no tokens of its answers, as those of a server, or was not scored yet.
        """
        self._scored()
        table = self.run.intermediate()
        if table.empty:
            raise LacksError(f"{self.run.folder} keeps no tokens of its answers, which this figure is drawn from")
        style = str(self.run.config().get("style", "answers"))
        return knowing_curve({style: table}, title=self.title(title), width=width)

    def figures(self, *, width: float | None = None) -> dict[str, Figure]:
        """All of these that the run has, by name.

        Raises:
            UserError: the run was not scored yet.
        """
        self._scored()
        return drawn((self.reliability, self.risk_coverage, self.m_curve, self.profile, self.knowing), width)

    @property
    def delta(self) -> float | None:
        """The smallest calibration error that counts, by the run's settings."""
        return self.run.config().get("calibration", {}).get("delta")

    def title(self, given: str | None = None) -> str:
        """What was given, or else model, dataset, style and B of the run in words."""
        if given is not None:
            return given
        config = self.run.config()
        named = [config.get(key, {}).get("name") for key in ("model", "dataset")]
        style = "" if config.get("style") == CONTINUATION else config.get("style")
        exact = config.get("semantics", {}).get("kind", "exact") == "exact"
        b = "" if exact else str(config.get("folder", "")).rpartition("__")[2]
        return " · ".join(part for part in (*named, style, b) if part) or self.run.name

    def _level(self) -> float:
        return float(self.run.config().get("calibration", {}).get("level", 0.95))

    def _seed(self, given: int | None) -> int:
        return int(self.run.config().get("seed", 0)) if given is None else given

    def _band_settings(self, seed: int) -> dict[str, Any]:
        classes, found, level = self._scored(), self.run.calibration(), self._level()
        band = None
        if classes.counts is not None and "bandwidth" in found:
            band = null_band(classes.counts, bandwidth=float(found["bandwidth"]), level=level, seed=seed)
        return {"null_band": band, "group": classes.groups, "level": level, "seed": seed}

    def _scored(self) -> ClassTable:
        return self.run.class_table()

    def _figures(self, key: str, what: str) -> list[dict[str, Any]]:
        """Rows of calibration.json."""
        rows = self.run.calibration().get(key)
        if not rows:
            raise LacksError(f"{self.run.folder} has no {what}; `semcal score {self.run.folder}` computes what it can")
        return rows


def drawn(methods: Iterable[Callable[..., Figure]], width: float | None) -> dict[str, Figure]:
    """What each method draws, by its name, without those that the run lacks something for."""
    found = {}
    for method in methods:
        try:
            found[method.__name__] = method(width=width)
        except LacksError:
            continue
    return found
