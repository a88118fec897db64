"""Answering only where confidence is high: the remaining risk at each coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, checked_pairs


@dataclass(frozen=True)
class RiskCoverage:
    """Risk among the answered questions, the most confident first.

    Attributes:
        coverage: `[n]` share of questions answered, 1/n, 2/n, ..., 1.
        risk: `[..., n]` expected share of wrong answers among them; equal confidences are answered in random order.
    """

    coverage: FloatArray
    risk: FloatArray


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv & Wiener 2010).

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].

    Raises:
        ValueError: as `signed_gap`.
    """
    pairs = checked_pairs(confidence, correct)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct = pairs.confidence.reshape(-1, n), pairs.correct.reshape(-1, n)
    rows = [_expected_errors(c, r) for c, r in zip(confidence, correct, strict=True)]
    answered = np.arange(1, n + 1)
    return RiskCoverage(answered / n, np.cumsum(rows, axis=-1).reshape(*leading, n) / answered)


def _expected_errors(confidence: FloatArray, correct: FloatArray) -> FloatArray:
    """[n] expected error at each place of the ranking: the mean error of the level at that place."""
    levels, level, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(level, 1 - correct, minlength=len(levels)) / count
    return np.repeat(errors, count)


def aurc(confidence: ArrayLike, correct: ArrayLike) -> FloatArray:
    """Area under the risk-coverage curve, `[...]` in [0, 1]: its mean over coverages (Geifman & El-Yaniv 2017).

    Lower is better; an uninformative confidence has the error rate.
    """
    return risk_coverage(confidence, correct).risk.mean(axis=-1)
