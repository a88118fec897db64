"""Split-half confidence: the mode from one half of the samples, its share from the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semcal.arrays import FloatArray
from semcal.calibration.estimators.thinning import thin
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import share_within


@dataclass(frozen=True)
class SplitHalf:
    """Mode and confidence taken on disjoint halves of the samples, averaged over random splits.

    Attributes:
        confidence: `[n]` share, in one half, of the class that is the mode of the other half.
        correct: `[n]` share of splits in which the half's mode is the gold class (ties as in `Confidences`).
    """

    confidence: FloatArray
    correct: FloatArray

    @property
    def gap(self) -> float:
        """Mean confidence minus mean accuracy over questions."""
        return float(self.confidence.mean() - self.correct.mean())


def split_half(table: ClassTable, *, rng: np.random.Generator, repeats: int = 20) -> SplitHalf:
    """Confidence without the bias of choosing the mode and measuring it on the same draws.

    The samples are split at random; the mode of one half (M // 2 samples) is the answer and its share in the other
    half the confidence, whose expectation given the first half is exactly pi(mode). Gap = confidence - correct is
    therefore 0 in expectation for a calibrated model at any M, where the plug-in gap is positive. It is about the
    answer chosen by M // 2 samples, which is right slightly less often than the answer chosen by M. Tied modes share
    equally in both numbers.

    Args:
        table: sampled answers, at least 2 per question.
        rng: source of the splits (multivariate hypergeometric).
        repeats: random splits per question; more lower the noise of the split, not that of the M samples.
    """
    counts, m = table.sampled_counts, table.m or 0
    if m < 2 or repeats < 1:
        raise ValueError(f"split_half needs at least 2 samples and 1 repeat, got m={m}, repeats={repeats}")
    half = thin(counts, m // 2, rng=rng, repeats=repeats)  # [repeats, n, K]
    first = half == half.max(axis=-1, keepdims=True)
    held_out = (counts - half) / (m - m // 2)
    confidence = (held_out * first).sum(axis=-1) / first.sum(axis=-1)
    correct = share_within(first, table.gold)
    return SplitHalf(confidence.mean(axis=0), correct.mean(axis=0))
