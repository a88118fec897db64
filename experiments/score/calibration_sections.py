"""What stands behind a run's headline figures: finite M, equivalence, loss gap, remedies, profile.

Everything is computed from answers that have been read, without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.config.study import Cell
from experiments.score.read_answers import Read
from experiments.score.surface_profile import profile
from semcal.calibration.estimators.finite_m import estimates
from semcal.calibration.estimators.m_curve import m_curve
from semcal.calibration.estimators.masses import class_masses
from semcal.calibration.estimators.recalibration import remedies
from semcal.calibration.inference.equivalence import equivalence, exact_equivalence
from semcal.calibration.measures.classwise import classwise
from semcal.calibration.measures.closed_set import ClosedSet
from semcal.calibration.measures.loss_gap import loss_gap, simulated_loss_gap
from semcal.calibration.measures.skce import skce
from semcal.calibration.nulls.null import Chances, exact_chances, exchange_chances
from semcal.calibration.summary import Calibration
from semcal.runs.run import Run
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import Confidences, confidences, confidences_of_masses
from semcal.semantics.distribution import CountMatrix
from semcal.semantics.tilting import TokenTilt, token_tilt

FOLDS = 5


def details(
    cell: Cell,
    run: Run,
    read: Sequence[Read],
    matrix: CountMatrix,
    by_mass: np.ndarray | None,
    headline: Calibration,
) -> dict[str, Any]:
    """Sections of calibration.json beside the headline; one that this run has no data for is None.

    Args:
        read: the run's answers, read by its own B.
        matrix: their classes.
        by_mass: `masses_of` the sampled answers.
        headline: the figures that they give.
    """
    group = run.questions()["group"].to_numpy()
    few = {"bootstrap": cell.calibration.detail_draws, "null_draws": cell.calibration.detail_draws}
    common: dict[str, Any] = {"group": group, "level": cell.calibration.level, "seed": cell.seed}
    sampled = cell.sampling.exact is None
    known = matrix.counts if by_mass is None else by_mass
    unknown = sampled and by_mass is None
    masses = None if unknown else confidences_of_masses(known, matrix.gold, matrix.unparsed)
    sections: dict[str, Any] = {"finite_m": None, "m_curve": None}
    if sampled:
        curve = m_curve(*_arrays(matrix), **few, **common)
        found = estimates(*_arrays(matrix), curve=curve, masses=masses, **few, **common)
        sections = {"finite_m": [asdict(e) for e in found], "m_curve": curve.rows()}
    sections["equivalence"] = _equivalence(cell, matrix, masses)
    sections |= _loss(cell, read, matrix, masses, group, few, common)
    sections["closed"] = _closed(cell, read) if len(run.aliases()) else None
    sections["profile"] = [asdict(row) for row in profile(cell, run, read, headline)]
    return sections


def sampled_masses(read: Sequence[Read], matrix: CountMatrix) -> Confidences | None:
    """Confidence and correctness by mass; None where a sample has no log-probability (some servers give none)."""
    masses = masses_of(read, matrix)
    return None if masses is None else confidences_of_masses(masses, matrix.gold, matrix.unparsed)


def masses_of(read: Sequence[Read], matrix: CountMatrix) -> np.ndarray | None:
    """[question, K] class masses by the log-probabilities of the samples; None where one has none."""
    place = [{k: c for c, k in enumerate(r.distribution.counts)} for r in read]
    logprob = np.concatenate([r.samples["logprob"].to_numpy(dtype=float) for r in read])
    if np.isnan(logprob).any():
        return None
    return class_masses(
        np.repeat(np.arange(len(read)), [len(r.classes) for r in read]),
        [place[row][klass] for row, r in enumerate(read) for klass in r.classes],
        np.concatenate([r.samples["count"].to_numpy(dtype=int) for r in read]),
        logprob,
        shape=matrix.counts.shape,
    )


def _arrays(matrix: CountMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.counts, matrix.gold, matrix.unparsed


def _equivalence(cell: Cell, matrix: CountMatrix, masses: Confidences | None) -> dict[str, Any] | None:
    """By mass where masses are known; by counts where each question has one gold class."""
    settings: dict[str, Any] = {
        "delta": cell.calibration.delta,
        "draws": cell.calibration.detail_draws,
        "alpha": 1 - cell.calibration.level,
        "seed": cell.seed,
    }
    if masses is not None:
        found = exact_equivalence(masses.plug_in, masses.correct, **settings)
    elif (gold := _single_gold(matrix)) is not None:
        found = equivalence(matrix.counts, gold, **settings)
    else:
        return None
    return asdict(found) | {"holds": found.holds, "confidence": "plug-in" if masses is None else "by mass"}


def _single_gold(matrix: CountMatrix) -> np.ndarray | None:
    """Column of the gold class, -1 where it has none; None where a question has several."""
    if (matrix.gold.sum(axis=1) > 1).any():
        return None
    return np.where(matrix.gold.any(axis=1), matrix.gold.argmax(axis=1), -1)


def _loss(
    cell: Cell,
    read: Sequence[Read],
    matrix: CountMatrix,
    masses: Confidences | None,
    group: np.ndarray,
    few: dict[str, int],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Loss gap and remedies, by mass where masses are known; they hold groups out, so there must be enough of them."""
    found = confidences(*_arrays(matrix)) if masses is None else masses
    m = cell.sampling.m if masses is None else None
    outcomes = found.correct.min() < found.correct.max()
    if len(set(group)) < FOLDS or not outcomes:
        return {"loss_gap": None, "remedies": None}
    gap = loss_gap(found.plug_in, found.correct, m=m, folds=FOLDS, bootstrap=few["bootstrap"], **common)
    section: dict[str, Any] = {
        "estimate": gap.estimate,
        "low": gap.low,
        "high": gap.high,
        "mean_tilt": gap.mean_tilt,
        "confidence": "plug-in" if masses is None else "by mass",
    }
    if (chances := _chances(matrix, masses)) is not None:
        uniform = keyed_generator(cell.seed, "null", "loss_gap").random((few["null_draws"], len(found.correct)))
        sure, right = chances.simulate(uniform)
        sure = np.broadcast_to(sure, right.shape)
        null = simulated_loss_gap(sure, right, m=m, group=group, folds=FOLDS, seed=cell.seed)
        section |= {
            "null_mean": null.mean,
            "excess": null.excess(gap.estimate),
            "p_value": null.p_value(gap.estimate),
        }
    if cell.sampling.exact is not None:
        section["by_token"] = asdict(_token_tilt(read, gap.tilts))
    try:
        cured = [asdict(r) for r in remedies(found.plug_in, found.correct, m=m, folds=FOLDS, **few, **common)]
    except ValueError:  # a training part in which all answers are right, or all wrong, has nothing to fit
        cured = None
    return {"loss_gap": section, "remedies": cured}


def _closed(cell: Cell, read: Sequence[Read]) -> dict[str, Any] | None:
    """Beyond the top class, where all questions share a closed set of classes and each has one gold class."""
    labels = sorted({k for r in read for k in (*r.classes, *r.distribution.gold)})
    column = {k: at for at, k in enumerate(labels)}
    counts = np.zeros((len(read), len(labels)))
    for row, r in enumerate(read):
        np.add.at(counts[row], [column[k] for k in r.classes], r.weights)
    if any(len(r.distribution.gold) > 1 for r in read):
        return None
    gold = [column[next(iter(r.distribution.gold))] if r.distribution.gold else -1 for r in read]
    closed = (ClosedSet.of_counts if cell.sampling.exact is None else ClosedSet.of_masses)(counts, gold)
    draws = cell.calibration.detail_draws
    kernel, by_class = skce(closed, draws=draws, seed=cell.seed), classwise(closed, draws=draws, seed=cell.seed)
    worst = min(by_class.classes, key=lambda k: k.p_holm)
    return {
        "classes": len(labels),
        "skce": kernel.skce,
        "skce_null_q95": kernel.null_q95,
        "skce_p_value": kernel.p_value,
        "classwise_smece": by_class.smece,
        "classwise_null_mean": by_class.null_mean,
        "classwise_p_value": by_class.p_value,
        "worst_class": ", ".join(labels[k] for k in worst.columns[:1] if k < len(labels)) or "(others)",
        "worst_class_gap": worst.gap,
        "worst_class_p_holm": worst.p_holm,
    }


def _chances(matrix: CountMatrix, masses: Confidences | None) -> Chances | None:
    if masses is not None:
        return exact_chances(masses.plug_in)
    gold = _single_gold(matrix)
    return None if gold is None else exchange_chances(matrix.counts, gold)


def _token_tilt(read: Sequence[Read], tilts: np.ndarray) -> TokenTilt:
    """The same tilts put in token by token, through the intermediate B-confidences of the enumerated answers."""
    explored = [at for at, r in enumerate(read) if r.classes]
    its = [read[at] for at in explored]
    return token_tilt(
        [[tuple(i) for i in r.samples["token_ids"]] for r in its],
        [r.weights for r in its],
        [[k == r.distribution.modes[0] for k in r.classes] for r in its],
        [[k in r.distribution.gold for k in r.classes] for r in its],
        tilts[explored],
    )
