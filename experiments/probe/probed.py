"""What probes of a run read and predict at one position: its questions, their classes, and activations.

Knows run folders; nothing of which rungs a study asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.config.settings import slug
from experiments.config.study import Cell
from experiments.probe.open_classes import OpenClasses
from probes.activations.foreign import ForeignActivations
from probes.activations.layers import Layers
from probes.evaluation.baselines import Texts
from probes.evaluation.layerwise import CrossValidation, Source, Target, evaluate_all
from probes.evaluation.open_layers import OpenEvaluation
from probes.evaluation.result import BASELINE, BILINEAR, LINEAR, Evaluation
from probes.evaluation.rungwise import Candidates, evaluate_rung
from probes.targets.closed import ClassTarget, class_target, ranked_target, share_target
from probes.targets.scalars import SCALARS, mode_correctness, scalar_target
from semcal.arrays import FloatArray
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.models.checkpoint import pick_device
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.runs.stored_activations import StoredActivations
from semcal.semantics.class_table import ClassTable

CLASSES = "classes"


@dataclass(frozen=True)
class Probed:
    """The questions of a run that have a position, and what is read there.

    Attributes:
        table, questions: their classes, and their rows of `Run.questions`.
        activations: of all questions of the run that have the position, read from disk layer by layer.
        features: class -> what the bilinear probe knows of it; None where it is not asked for.
        opened: whether the target classes is open, so that only rungs which know classes by their texts predict it.
    """

    cell: Cell
    table: ClassTable
    questions: pd.DataFrame
    activations: StoredActivations | ForeignActivations
    features: dict[str, FloatArray] | None = None
    opened: bool = False

    @classmethod
    def of(
        cls,
        cell: Cell,
        run: Run,
        position: str,
        features: dict[str, FloatArray] | None = None,
        *,
        opened: bool = False,
    ) -> Probed:
        activations = activations_of(cell, run, position)
        rows = np.flatnonzero(activations.present)
        return cls(cell, run.class_table().select(rows), run.questions().iloc[rows], activations, features, opened)

    @property
    def group(self) -> list[str]:
        return self.table.groups.tolist()

    @property
    def texts(self) -> Texts:
        return Texts.of(list(self.questions["text"]), list(self.questions["prompt_tokens"]))

    @property
    def how(self) -> CrossValidation:
        """How linear probes are cross-validated."""
        probes = self.cell.probes
        return CrossValidation(folds=probes.folds, permutations=probes.permutations, device=probe_device(probes.device))

    @property
    def resampling(self) -> Resampling:
        """Of intervals; its seed is that of everything drawn. The number of resamples is not the study's, or probes
        would have to be fitted again for another one."""
        return Resampling(level=self.cell.calibration.level, seed=self.cell.seed)

    @property
    def closed(self) -> list[str]:
        """The targets that rungs predict which know classes by their numbers alone."""
        return [name for name in self.cell.probes.targets if not (self.opened and name == CLASSES)]

    @cached_property
    def classes(self) -> OpenClasses:
        """All classes of the questions, for rungs that know them by their texts."""
        assert self.features is not None
        return OpenClasses.of(self.table, self.features, self.how, self.resampling)

    @property
    def bilinear(self) -> bool:
        """Whether bilinear probes of the classes are asked for."""
        probes = self.cell.probes
        return CLASSES in probes.targets and (BILINEAR in probes.rungs or (self.opened and LINEAR in probes.rungs))

    @cached_property
    def by_text(self) -> OpenEvaluation:
        """Bilinear probes of the classes on every layer, or, where they are not asked for, on the last alone: for the
        probe's confidence."""
        layers = Layers.stored(self.activations)
        if self.bilinear:
            return self.classes.fit(layers, exchanges=self.how.exchanges)
        return self.classes.fit(layers.only(layers.names[-1:]))

    def target(self, name: str) -> Target:
        if name in SCALARS:
            return scalar_target(self.table, name, seed=self.cell.seed)
        return self.distribution(name)

    def distribution(self, name: str) -> ClassTarget:
        """A target that is a distribution."""
        if name == CLASSES:
            return class_target(self.table, max_classes=self.cell.probes.max_classes)
        if name == "ranked":
            return ranked_target(self.table)
        return share_target(mode_correctness(self.table), name=name, m=self.table.m)

    def fit_linear(
        self, targets: Sequence[Target], source: Source, *, rung: str = LINEAR, how: CrossValidation | None = None
    ) -> list[Evaluation]:
        """Linear probes of whatever can be read like layers; each layer is read once for all targets."""
        how, resampling = how or self.how, self.resampling
        return evaluate_all(source, targets, group=self.group, how=how, resampling=resampling, rung=rung)

    def fit_baseline(self, names: Sequence[str], baseline: str, source: Source) -> list[Evaluation]:
        """Some targets from other layers than the run's own: by linear probes, or where classes are open by bilinear
        ones; without a permutation null."""
        how, rung = replace(self.how, permutations=0), f"{BASELINE}{baseline}"
        closed = [self.target(name) for name in names if name in self.closed]
        found = self.fit_linear(closed, source, rung=rung, how=how) if closed else []
        return [*found, *([self.classes.baseline(baseline, source)] if self.opened and CLASSES in names else [])]

    def fit_rung(self, name: str, chosen_from: Candidates, X: Any, *, layer: str) -> Evaluation:
        """One target that is a distribution by one rung at one layer; see `evaluate_rung`."""
        settings: dict[str, Any] = {"group": self.group, "how": self.how, "resampling": self.resampling}
        return evaluate_rung(chosen_from, X, self.distribution(name), layer=layer, **settings)


def probed_positions(cell: Cell) -> list[str]:
    """Where a run is probed. Another tool's activations count as those at the last prompt token."""
    return [LAST_PROMPT_TOKEN] if cell.probes.activations else cell.capture.positions


def activations_of(cell: Cell, run: Run, position: str) -> StoredActivations | ForeignActivations:
    """What probes of a run read at a position: its own activations, or the file of another tool.

    Raises:
        UserError: as `Run.activations` and `ForeignActivations.open`.
    """
    if not cell.probes.activations:
        return run.activations(position)
    ids = run.questions()["id"].tolist()
    return ForeignActivations.open(Path(cell.probes.activations), ids, position=position)


def probe_device(name: str) -> str:
    """The device that probes are fitted on: "auto" is CUDA where it is available, else the CPU (they need float64).

    Raises:
        UserError: a device that is not available on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(pick_device(name))


def layers_of_other(at: Probed) -> Layers:
    """The layers of `probes.other`, another model's run, at the last prompt token of the questions probed.

    Raises:
        UserError: it is no run, has no activations there, or lacks one of the questions.
    """
    cell = at.cell
    own = {"dataset": cell.dataset.name, "style": cell.style, "semantics": slug(cell.semantics.label)}
    folder = cell.probes.other
    for key, name in own.items():
        folder = folder.replace(f"{{{key}}}", name)
    stored = Run.open(folder).activations(LAST_PROMPT_TOKEN)
    place = {question: row for row, question in enumerate(stored.questions)}
    if (missing := next((q for q in at.table.questions if q not in place), None)) is not None:
        raise UserError(f"probes.other: {folder} has no question {missing!r}; name a run of the same dataset")
    rows = np.array([place[question] for question in at.table.questions])
    names = stored.layers
    return Layers(names, lambda index: stored.layer(names[index])[rows], 4 * stored.width[0])
