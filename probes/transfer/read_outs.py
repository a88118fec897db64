"""What a transferred probe reads out: closed classes, open classes, or B-confidence.

Each learns from some questions of one run and predicts questions of any run, beside a model of the same training
questions that has no activations. Knows targets over one vocabulary of all runs; nothing of folds or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from probes.evaluation.folds import Fold, inner_split
from probes.evaluation.kl_gap import KLGap, confidence_gaps, kl_gaps
from probes.evaluation.open_layers import predict_open
from probes.evaluation.rungwise import log_marginal_of, predict_elsewhere
from probes.rungs.bilinear import class_axes
from probes.rungs.registry import PENALTIES
from probes.targets.closed import ClassTarget
from probes.targets.entropy import Entropies
from probes.targets.open import OpenTarget, sparse, stacked
from semcal.arrays import FloatArray, IntArray
from semcal.calibration.resampling import Resampling


@dataclass(frozen=True)
class Part:
    """Some questions of a run.

    Attributes:
        run: its index.
        rows: [question], which of its questions.
        states: [question, d], their activations, in the space of the run that is learnt from.
        group: [question].
    """

    run: int
    rows: IntArray
    states: FloatArray
    group: Sequence[str]


class ReadOut(Protocol):
    """A probe to transfer. It gives each question some *values*, log-probabilities by which it is scored."""

    @property
    def sizes(self) -> list[int]:
        """[run] questions."""
        ...

    def values(self, run: int, rows: IntArray) -> IntArray:
        """Indices of the values of some questions."""
        ...

    def predict(self, learnt: Part, elsewhere: Sequence[Part], *, seed: int) -> list[tuple[FloatArray, FloatArray]]:
        """The values of each part, by the probe and by the model without activations."""
        ...

    def gaps(self, run: int, log_q: FloatArray, group: Sequence[str], resampling: Resampling) -> list[KLGap]:
        """KL gaps of predictors of a run from values [predictor, value]."""
        ...

    def covered(self, trained: int, tested: int) -> float:
        """Share of the mass of the run tested on in classes that the run trained on shows at all."""
        ...


@dataclass(frozen=True)
class ClosedClasses:
    """A linear probe of closed classes; without activations, the marginal.

    Attributes:
        targets: [run], over one vocabulary.
    """

    targets: Sequence[ClassTarget]

    @property
    def sizes(self) -> list[int]:
        return [len(target) for target in self.targets]

    @cached_property
    def sparse(self) -> list[OpenTarget]:
        return [sparse(target) for target in self.targets]

    def values(self, run: int, rows: IntArray) -> IntArray:
        return self.sparse[run].entries(rows)

    def predict(self, learnt: Part, elsewhere: Sequence[Part], *, seed: int) -> list[tuple[FloatArray, FloatArray]]:
        Y = self.targets[learnt.run].distribution[learnt.rows]
        states = [part.states for part in elsewhere]
        found = predict_elsewhere(learnt.states, Y, learnt.group, states, seed=seed)
        marginal, values = log_marginal_of(Y), []
        for part, log_q in zip(elsewhere, found, strict=True):
            own = self.sparse[part.run].select(part.rows)
            column = own.columns(self.targets[part.run].classes)
            values.append((log_q[own.question, column], marginal[column]))
        return values

    def gaps(self, run: int, log_q: FloatArray, group: Sequence[str], resampling: Resampling) -> list[KLGap]:
        known = self.targets[run].known_entropies
        assert known is not None  # classes are fixed
        return kl_gaps(self.sparse[run], log_q, known, group, resampling)

    def covered(self, trained: int, tested: int) -> float:
        shown = self.targets[trained].distribution.sum(0) > 0
        return float(self.targets[tested].distribution[:, shown].sum(1).mean())


@dataclass(frozen=True)
class OpenClasses:
    """The bilinear probe of open classes, over the classes of all runs together; without activations, the
    candidate-only model. A class is known by its text, so that one which the probe never saw can be predicted.

    Attributes:
        targets: [run], over one vocabulary.
        known: [run], their entropies.
        features: [run], embeddings of the classes [class, feature] by the model of the run; runs of one model share
            one array.
        device: where probes are fitted.
    """

    targets: Sequence[OpenTarget]
    known: Sequence[Entropies]
    features: Sequence[FloatArray]
    device: str = "cpu"

    @property
    def sizes(self) -> list[int]:
        return [len(target) for target in self.targets]

    @cached_property
    def _axes(self) -> dict[int, Tensor]:
        """Of each array of features."""
        return {
            id(features): class_axes(features).to(self.device)
            for features in {id(f): f for f in self.features}.values()
        }

    def values(self, run: int, rows: IntArray) -> IntArray:
        return self.targets[run].entries(rows)

    def predict(self, learnt: Part, elsewhere: Sequence[Part], *, seed: int) -> list[tuple[FloatArray, FloatArray]]:
        parts = [learnt, *elsewhere]
        target = stacked([self.targets[part.run].select(part.rows) for part in parts])
        known, n = len(learnt.rows), len(target)
        fit, validation = inner_split(learnt.group, 5, seed=seed)
        fold = Fold(np.arange(known), np.arange(known, n), fit, validation)
        states = np.concatenate([part.states for part in parts])
        group = [name for part in parts for name in part.group]
        axes = self._axes[id(self.features[learnt.run])]
        found = predict_open(states, target, axes, group, fold, PENALTIES)
        ends = np.cumsum([len(self.values(part.run, part.rows)) for part in elsewhere])[:-1]
        return list(zip(*(np.split(log_q, ends) for log_q in found), strict=True))

    def gaps(self, run: int, log_q: FloatArray, group: Sequence[str], resampling: Resampling) -> list[KLGap]:
        return kl_gaps(self.targets[run], log_q, self.known[run], group, resampling)

    def covered(self, trained: int, tested: int) -> float:
        shown = np.isin(self.targets[tested].column, np.unique(self.targets[trained].column))
        return float(self.targets[tested].mass[shown].sum() / len(self.targets[tested]))


@dataclass(frozen=True)
class Confidence:
    """A linear probe of B-confidence, whatever the classes are called; without activations, its mean.

    The probe learns from the share of the most frequent class, which M samples overstate, and is scored by halves.

    Attributes:
        targets: [run], `share_target` of B-confidence.
        classes: [run], the class distributions behind it.
    """

    targets: Sequence[ClassTarget]
    classes: Sequence[OpenTarget]

    @property
    def sizes(self) -> list[int]:
        return [len(target) for target in self.targets]

    def values(self, run: int, rows: IntArray) -> IntArray:  # noqa: ARG002 - one value a question
        return rows

    def predict(self, learnt: Part, elsewhere: Sequence[Part], *, seed: int) -> list[tuple[FloatArray, FloatArray]]:
        Y = self.targets[learnt.run].distribution[learnt.rows]
        states = [part.states for part in elsewhere]
        found = predict_elsewhere(learnt.states, Y, learnt.group, states, seed=seed)
        mean = log_marginal_of(Y)[0]
        return [(log_q[:, 0], np.full(len(log_q), mean)) for log_q in found]

    def gaps(self, run: int, log_q: FloatArray, group: Sequence[str], resampling: Resampling) -> list[KLGap]:
        return confidence_gaps(self.classes[run], log_q, group, resampling)

    def covered(self, trained: int, tested: int) -> float:  # noqa: ARG002 - there are no classes to cover
        return 1.0
