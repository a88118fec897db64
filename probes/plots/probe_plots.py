"""The figures of the probes of one run, by name and with defaults: `probes.plot(run).layers()`.

Knows which rows of the run's tables each figure shows; the figures of calibration are in `run.plot`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probes.evaluation.result import BASELINE, LAYER_RUNGS, at_layer, layer_rows, probe_table
from probes.plots.commitment import commitment_curve
from probes.plots.dose_response import dose_response
from probes.plots.heatmaps import layer_position_map
from probes.plots.layer_curve import layer_curve
from probes.plots.learning_curve import learning_curve_figure
from probes.plots.measures import measure_of
from probes.plots.rungs_figure import MARGINAL, rungs_figure
from semcal.errors import UserError
from semcal.positions import BEFORE_ANSWER, LAST_PROMPT_TOKEN, layer_place, nominal_place
from semcal.runs.run import Run
from semcal.runs.run_plots import LacksError, drawn

_INTERVENTION = ("context", "kind", "hook", "position")  # a figure for each


def plot(run: Run, target: str | None = None) -> ProbePlots:
    """The figures of a run's probes:

    >>> probes.plot(semcal.Run.open(folder)).figures()  # by name; this run has no probes
    {}

    Args:
        run: scored and probed.
        target: what the probes predict; by default the classes, or the first target if these were not probed.

    Raises:
        UserError: no probes of this target.
    """
    table = probe_table(run)
    targets = list(dict.fromkeys(table["target"])) if len(table) else []
    if target is not None and target not in targets:
        known = f"it has those of {', '.join(targets)}" if targets else "it was not probed"
        raise UserError(f"{run.folder} has no probes of {target!r}; {known}")
    chosen = target or ("classes" if "classes" in targets else next(iter(targets), ""))
    return ProbePlots(run, chosen, table.loc[table["target"] == chosen, :] if targets else table)


@dataclass(frozen=True)
class ProbePlots:
    """Figures of the probes of one target, as Matplotlib Figures that belong to no window.

    Every method takes `title` (by default model, dataset, style and B of the run; "" for none) and `width` (inches, by
    default the figure's own; 3.25 is a column of a paper). Where the run lacks what a figure shows, it raises
    LacksError, a UserError.

    Attributes:
        run: of the figures.
        target: what the probes predict; "" where there are none.
        rows: of `Run.probes`, for this target.
    """

    run: Run
    target: str
    rows: pd.DataFrame

    def layers(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """The KL gap by layer, at the last prompt token or else the first position captured; see `layer_curve`."""
        lines, where = self._known_layers(), self._position()
        here, beside = (frame.loc[frame["position"] == where, :] for frame in (lines, self._baselines()))
        if not measure_of(here).known(here):
            raise self._lacks(f"probes of its layers at {where}")
        named = self._title(title, "" if where == LAST_PROMPT_TOKEN else where)
        return layer_curve(here, beside, title=named, width=width)

    def positions(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """The KL gap by layer and position; see `layer_position_map`."""
        lines = self._known_layers()
        if len(set(lines["position"])) < 2:
            raise self._lacks("probes at two positions (capture.positions)")
        named = self._title(title, f"{lines['rung'].iloc[0]} probes")
        return layer_position_map(lines, title=named, marginal=self._marginal(), width=width)

    def rungs(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """All rungs and baselines at the last layer that has both probes of every layer and a rung above them; see
        `rungs_figure`."""
        self._probed()
        fitted = self.rows.loc[~self.rows["rung"].str.startswith(BASELINE), :]
        fitted = fitted.dropna(subset=[measure_of(self.rows).value])
        if len(set(fitted["rung"])) < 2:
            raise self._lacks("probes of two rungs (probes.rungs)")
        layers = list(dict.fromkeys(self._lines()["layer"]))
        above = set(fitted.loc[~fitted["rung"].isin(LAYER_RUNGS), "layer"])
        layer = next((name for name in reversed(layers) if name in above), layers[-1] if layers else "")
        named = self._title(title, "last layer" if not layers or layer == layers[-1] else layer)
        return rungs_figure(at_layer(self.rows, layer), title=named, width=width)

    def learning(self, *, title: str | None = None, width: float | None = None) -> Figure:
        """The KL gap by the number of questions learnt from; see `learning_curve_figure`."""
        self._probed()
        curve = self.run.learning_curve()
        if self.target != "classes" or curve.empty:
            raise self._lacks("curve of learning (of the generative rung, on classes)")
        return learning_curve_figure(curve, title=self._title(title), marginal=self._marginal(), width=width)

    def commitment(self, *, title: str | None = None, unit: str | None = None, width: float | None = None) -> Figure:
        """When the answer is decided, and when it can be read; see `commitment_curve`.

        Args:
            unit: "share" of the answer or "token"; None for the first that the positions are given in.
        """
        units = self.units()
        if not units or (unit is not None and unit not in units):
            raise self._lacks("probes along the answer (capture.positions such as chain_50), or keeps no tokens of it")
        lines = self._known_layers()
        last = lines.loc[lines["layer"] == lines["layer"].iloc[-1], :]
        positions, unit = list(last["position"]), unit or units[0]
        measured = _before_answer(self.run) if BEFORE_ANSWER in positions else {}
        places = {p: measured if p == BEFORE_ANSWER else nominal_place(p) for p in positions}
        probed = last.assign(**{unit: [places[p].get(unit) for p in positions]})
        probed = probed.dropna(subset=[unit]).drop_duplicates(unit)  # chain_0 ends the prompt, too
        named = probed.assign(name=np.where(probed["position"] == BEFORE_ANSWER, "before the answer", ""))
        below = f"{last['rung'].iloc[0]} probes, last layer"
        heading = title if title is not None else f"{self.run.plot.title()}\n{below}"
        return commitment_curve(self.run.intermediate(), named, title=heading, width=width)

    def units(self) -> list[str]:
        """In what places along the answer are given for `commitment`; empty where it cannot be drawn."""
        lines = self._lines()
        if self.target != "classes" or lines.empty or not measure_of(lines).known(lines):
            return []
        positions = list(dict.fromkeys(lines["position"]))
        places = [nominal_place(p) for p in positions]
        units = [unit for unit in ("share", "token") if any(place.get(unit, 0) > 0 for place in places)]
        if not units and BEFORE_ANSWER in positions:
            units = ["share"]
        return units if units and not self.run.intermediate().empty else []  # served models report no tokens

    def interventions(self, *, width: float | None = None) -> dict[str, Figure]:
        """What each kind of intervention did, with every control, by kind, hook, position and questions; see
        `dose_response`. Empty before `semcal intervene`."""
        rows, found = self.run.interventions(), {}
        for _, some in () if rows.empty else rows.query("kind != 'none'").groupby(list(_INTERVENTION), sort=False):
            context, kind, hook, position = (str(some[name].iloc[0]) for name in _INTERVENTION)
            floor = rows.query("kind == 'none' and context == @context")
            named = f"{self.run.plot.title()}: {kind} at {hook}, {position}, n = {some['n'].max():.0f}"
            name = "-".join((kind, hook, position, context[:4]))
            found[name] = dose_response(pd.concat([some, floor]), title=named, width=width)
        return found

    def figures(self, *, width: float | None = None) -> dict[str, Figure]:
        """All of these that the run has, by name, without those of interventions."""
        return drawn((self.layers, self.positions, self.rungs, self.learning, self.commitment), width)

    def _lines(self) -> pd.DataFrame:
        """The rows of the probes fitted at every layer, in the order of the layers."""
        if self.rows.empty:
            return self.rows.reindex(columns=["layer", "position", "rung", "target", "gap", "explained"])
        return layer_rows(self.rows).sort_values("layer", key=lambda names: names.map(layer_place), kind="stable")

    def _known_layers(self) -> pd.DataFrame:
        self._probed()
        lines = self._lines()
        if lines.empty or not measure_of(lines).known(lines):
            raise self._lacks("probes of its layers (probes.rungs: linear or bilinear)")
        return lines

    def _position(self) -> str:
        positions = list(dict.fromkeys(self._lines()["position"]))
        return LAST_PROMPT_TOKEN if LAST_PROMPT_TOKEN in positions else positions[0]

    def _baselines(self) -> pd.DataFrame:
        return self.rows.loc[self.rows["rung"].str.startswith(BASELINE), :]

    def _marginal(self) -> float:
        return float(self.rows.loc[self.rows["rung"] == MARGINAL, "gap"].max())

    def _title(self, given: str | None, more: str = "") -> str:
        if given is not None:
            return given
        return " · ".join(part for part in (self.run.plot.title(), more) if part)

    def _probed(self) -> None:
        if self.rows.empty:
            raise self._lacks("probes")

    def _lacks(self, what: str) -> LacksError:
        return LacksError(
            f"{self.run.folder} has no {what}; `semcal probe {self.run.folder}` fits what its study names"
        )


def _before_answer(run: Run) -> dict[str, float]:
    """Where the answering phrase begins: mean share of the answer and mean number of tokens; empty if none has one."""
    stored = run.activations(BEFORE_ANSWER)
    if not len(stored.samples) or stored.token_index.min() < 0:
        return {}
    read = stored.token_index - (run.questions()["prompt_tokens"].to_numpy()[stored.present] - 1)
    length = run.samples()["token_ids"].iloc[stored.samples].map(len).to_numpy()
    return {"share": float(np.mean(read / length)), "token": float(read.mean())}
