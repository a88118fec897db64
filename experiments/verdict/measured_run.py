"""A run as the hypotheses need it: its names, confidence and correctness, unparsed answers, KL gaps.

Knows no files and no rules; a figure is computed once, when a rule first needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from semcal.calibration.estimators.unparsed import UnparsedBounds
from semcal.calibration.inference.paired import STATISTICS, Leaves, leaves, plain_mean
from semcal.calibration.measures.binned import debiased_ece
from semcal.calibration.measures.loss_gap import LossGap, loss_gap, simulated_loss_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.twins import Chances
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator

FOLDS = 5  # of the loss gap
NULL_DRAWS = 400  # simulated calibrated twins, for the means of nulls


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        label: model, dataset and style, in words.
        weights: hash of its weights; models with other prompts may share them.
        confidence, correct: `[n]`, by mass or as shares of samples.
        group: `[n]` labels of dependent questions.
        chances: of its calibrated twins; None where they are unknown.
        null: mean smECE of calibrated models, where `chances` are unknown.
        smoothing: samples per question where confidences are shares of them; None for masses.
        in_distribution: whether the theory expects a base model to be calibrated on the dataset.
        unparsed: what the unparsed answers might have been; None: all were parsed.
        seen_mass: mean probability of the distinct answers seen; NaN where unknown.
        truncated: share of the samples cut off by the length limit.
        alike: the warning that its chains of thought are all alike; "" if they are not.
        kl_gaps: rung -> KL gap in nats, see `stored_gaps.py`.
        pooled: share of the mass in the pooled class of the target of the probes.
        arm: what distinguishes its training from that of others of its lineage.
    """

    label: str
    folder: str
    model: str
    weights: str
    lineage: str
    stage: str | None
    step: int | None
    prompt: str
    dataset: str
    style: str
    confidence: np.ndarray
    correct: np.ndarray
    group: np.ndarray
    chances: Chances | None
    null: float = float("nan")
    smoothing: int | None = None
    in_distribution: bool = True
    unparsed: UnparsedBounds | None = None
    seen_mass: float = float("nan")
    truncated: float = float("nan")
    alike: str = ""
    kl_gaps: Mapping[str, Leaves] = field(default_factory=dict)
    pooled: float = 0.0
    arm: str = ""
    seed: int = 0

    @property
    def unparsed_share(self) -> float:
        return 0.0 if self.unparsed is None else self.unparsed.share

    @cached_property
    def binned(self) -> float:
        """The debiased binned error."""
        return float(debiased_ece(self.confidence, self.correct))

    @cached_property
    def error(self) -> Leaves:
        """smECE: in expectation at least the calibration error."""
        return self._leaves("smece")

    @cached_property
    def excess(self) -> Leaves:
        """smECE minus the mean of its calibrated twins: in expectation at most the calibration error."""
        null = self.null if self.chances is None else float(smece_batch(*self._twins).values.mean())
        return self.error.minus(null)

    @cached_property
    def gap(self) -> Leaves:
        """Confidence minus accuracy."""
        return self._leaves("signed_gap")

    @cached_property
    def loss_gap(self) -> LossGap | None:
        """What the best tilt would recover; None where all answers are right, or all wrong, or groups are too few."""
        if not self.correct.min() < self.correct.max() or len(set(self.group)) < FOLDS:
            return None
        resampling = Resampling(bootstrap=1, seed=self.seed)
        settings: dict[str, Any] = {"m": self.smoothing, "group": self.group, "folds": FOLDS, "resampling": resampling}
        return loss_gap(self.confidence, self.correct, **settings)

    @cached_property
    def loss(self) -> Leaves | None:
        """The loss gap minus the mean loss gap of its calibrated twins, nats; None where there is none."""
        if self.loss_gap is None or self.chances is None:
            return None
        null = simulated_loss_gap(*self._twins, m=self.smoothing, group=self.group, folds=FOLDS, seed=self.seed)
        drops = self.loss_gap.drops
        found = leaves(plain_mean, drops, drops, stratum=self.dataset, group=self.group, seed=self.seed)
        return found.minus(null.mean)

    def _leaves(self, statistic: str) -> Leaves:
        found, of = STATISTICS[statistic], (self.confidence, self.correct)
        return leaves(found, *of, stratum=self.dataset, group=self.group, seed=self.seed)

    @cached_property
    def _twins(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence and correctness of calibrated models, `[NULL_DRAWS, n]` each."""
        assert self.chances is not None
        uniform = self.chances.uniforms(NULL_DRAWS, keyed_generator(self.seed, "null", "verdict"))
        confidence, correct = self.chances.simulate(uniform)
        return np.broadcast_to(confidence, correct.shape), correct
