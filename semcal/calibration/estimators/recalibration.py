"""What would fix a confidence: maps fitted on some questions and applied to others, whole groups apart.

Temperature, isotonic, beta and tilt recalibration of B-confidence, each out of fold, and a table of their effects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.inference.bootstrap import bootstrap_interval, folds_by_group
from semcal.calibration.measures.loss_gap import held_out_tilts, inside
from semcal.calibration.measures.scores import auroc, brier, log_loss, signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import null_of_twins
from semcal.calibration.nulls.twins import exact_chances
from semcal.calibration.resampling import Resampling

Method = Literal["none", "temperature", "isotonic", "beta", "tilt"]
Map = Callable[[FloatArray], FloatArray]

STEEPEST = 20.0
"""Bound on slopes in logit c or log c, and on the intercept: a steeper map is a threshold."""


@dataclass(frozen=True)
class Remedy:
    """How calibrated a confidence is after one method, measured on questions that the method was not fitted on.

    Attributes:
        method: "none" is the confidence unchanged.
        smece, smece_low, smece_high: SmoothECE and its centred bootstrap interval, the fitted maps taken as given.
        null_mean: mean smECE of a model that is right with a probability of exactly this confidence.
        excess: smece - null_mean. That null ignores finite M: before a remedy, the overstatement of the largest of M
            shares is part of the excess (unlike in `simulated_null`), and a remedy may remove it.
        p_value: one-sided, of smece against that null.
        signed_gap: mean confidence - accuracy.
        brier: expected Brier score.
        log_loss: in nats; for "none", shares k/m are taken as (k + 1/2)/(m + 1).
        auroc: increasing maps leave it unchanged, except that folds have different maps and that ties may form.
    """

    method: Method
    smece: float
    smece_low: float
    smece_high: float
    null_mean: float
    excess: float
    p_value: float
    signed_gap: float
    brier: float
    log_loss: float
    auroc: float


def remedies(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    m: int | None = None,
    group: ArrayLike | None = None,
    folds: int = 5,
    resampling: Resampling = Resampling(),
) -> tuple[Remedy, ...]:
    """Every method on the same questions and folds, "none" first.

    Args:
        resampling: of intervals and nulls; its seed also deals the folds.
        others: as in `recalibrated`.

    Raises:
        ValueError: as `recalibrated`.
    """
    correct = checked_pairs(confidence, correct).correct

    def smooth_error(sure: FloatArray, right: FloatArray, *, weight: FloatArray) -> FloatArray:
        return smece_batch(sure, right, weight=weight).values

    def measured(method: Method) -> Remedy:
        sure = recalibrated(confidence, correct, method, m=m, group=group, folds=folds, seed=resampling.seed)
        smooth = bootstrap_interval(
            smooth_error, [sure, correct], group=group, resampling=resampling, centred=True, bounds=(0.0, 1.0)
        )
        chances = exact_chances(sure).grouped(correct, group)
        null = null_of_twins(chances, null_draws=resampling.null_draws, seed=resampling.seed)
        return Remedy(
            method,
            smooth.estimate,
            smooth.low,
            smooth.high,
            null.mean,
            null.excess(smooth.estimate),
            null.p_value(smooth.estimate),
            float(signed_gap(sure, correct)),
            float(brier(sure, correct)),
            float(log_loss(sure, correct, m=m if method == "none" else None)),
            float(auroc(sure, correct)),
        )

    return tuple(measured(method) for method in get_args(Method))


def recalibrated(
    confidence: ArrayLike,
    correct: ArrayLike,
    method: Method,
    *,
    m: int | None = None,
    group: ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> FloatArray:
    """Confidences `[n]`, each mapped by what was fitted without its fold; "none" returns them unchanged.

    All maps act on c as `tilt.inside` gives it, and minimise the log loss, except isotonic (squared error):

    - temperature: sigma(logit(c) / T), see `temperature`;
    - isotonic: the rising step function, kept 1 / (2 n + 2) from 0 and 1, where n is the number of questions fitted on;
    - beta: sigma(a log c - b log(1 - c) + d) with a, b >= 0 (Kull et al. 2017, AISTATS);
    - tilt: sigma(logit(c) + tau(c)), the tilt of `loss_gap`; no tilt where none is worth it.

    Args:
        confidence: `[n]` in [0, 1].
        correct: `[n]` in [0, 1]; a fraction counts as that much of a right answer and the rest of a wrong one.
        m: samples per question where confidences are shares of samples; None for exact masses.
        group: `[n]` labels of questions that depend on one another: never in both fit and evaluation.
        folds: at least 3.
        seed: deals the groups to folds.

    Raises:
        ValueError: as `checked_pairs`; an unknown method; fewer than 3 folds, or fewer groups than folds; all answers
            right, or all wrong, in what a fold is fitted on. One confidence for all is accepted: the maps then give
            the accuracy of the folds fitted on, except a temperature, which cannot cross 1/2, and a tilt not worth it.
    """
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 1:
        raise ValueError(f"recalibrated expects one row [n], got shape {pairs.confidence.shape}")
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(get_args(Method))}")
    if method == "none":
        return np.array(pairs.confidence)
    sure, right = inside(pairs.confidence, m), pairs.correct
    fold = folds_by_group(group, len(sure), folds, seed=seed)
    for held_out in range(folds):
        accuracy = right[fold != held_out].mean()
        if accuracy in (0.0, 1.0):
            alike = "right" if accuracy else "wrong"
            raise ValueError(
                f"all answers outside fold {held_out} are {alike}; recalibration needs both; ask more questions"
            )
    if method == "tilt":
        return expit(logit(sure) + held_out_tilts(sure[None], right[None], fold)[0][0])
    fixed = np.empty(len(sure))
    for held_out in range(folds):
        fitted = _FITS[method](sure[fold != held_out], right[fold != held_out])
        fixed[fold == held_out] = fitted(sure[fold == held_out])
    return fixed


def temperature(confidence: ArrayLike, correct: ArrayLike, *, m: int | None = None) -> float:
    """The T that minimises the log loss of sigma(logit(c) / T): above 1 where the model is overconfident.

    At least 1 / STEEPEST; infinite where confidence says nothing, or the contrary, of correctness; 1 where every
    confidence is 1/2. Arguments as `recalibrated`.
    """
    pairs = checked_pairs(confidence, correct)
    (slope,) = _slopes(logit(inside(pairs.confidence, m))[:, None], pairs.correct, np.ones(1), [(0.0, STEEPEST)])
    return float(1 / slope) if slope > 0 else np.inf


def _slopes(
    features: FloatArray, correct: FloatArray, start: FloatArray, bounds: list[tuple[float, float]]
) -> FloatArray:
    """Coefficients `[p]`, within bounds, of least log loss of sigma(features [n, p] @ coefficients)."""

    def loss(coefficients: FloatArray) -> tuple[float, FloatArray]:
        score = features @ coefficients
        slope = features.T @ (expit(score) - correct)
        return float((np.logaddexp(0, score) - correct * score).mean()), slope / len(correct)

    return minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-13, "gtol": 1e-8}).x


def _fit_temperature(confidence: FloatArray, correct: FloatArray) -> Map:
    fitted = temperature(confidence, correct)
    return lambda c: expit(logit(c) / fitted)


def _fit_beta(confidence: FloatArray, correct: FloatArray) -> Map:
    def features(c: FloatArray) -> FloatArray:
        return np.column_stack([np.log(c), -np.log1p(-c), np.ones_like(c)])

    bounds = [(0.0, STEEPEST), (0.0, STEEPEST), (-STEEPEST, STEEPEST)]
    coefficients = _slopes(features(confidence), correct, np.array([1.0, 1.0, 0.0]), bounds)
    return lambda c: expit(features(c) @ coefficients)


def _fit_isotonic(confidence: FloatArray, correct: FloatArray) -> Map:
    least = 0.5 / (len(confidence) + 1)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(confidence, correct)
    return fitted.predict


_FITS = {"temperature": _fit_temperature, "isotonic": _fit_isotonic, "beta": _fit_beta}
