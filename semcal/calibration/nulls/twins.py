"""The calibrated twins of a run's questions: what a model would show that is as right as its own samples say.

`chances_of` picks them for a class table. By counts, the gold answer changes places with one of the M samples
(`exchange_chances`, exact). By mass, confidence is taken from M - 1 samples, and the sample left out says how often
such a confidence is right (`left_out_chances`). Either way, what the samples have not seen cannot be taken for known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from sklearn.isotonic import IsotonicRegression

from semcal.arrays import FloatArray, in_unit_interval
from semcal.calibration.inference.bootstrap import Groups, groups
from semcal.calibration.nulls.exchange import pooled, shared_uniforms
from semcal.semantics.class_table import ClassTable

LEVELS = 10  # of chance, at which residuals are centred


@dataclass(frozen=True)
class Chances:
    """The two pairs of confidence and correctness that a question can show in a simulated data set.

    Attributes:
        chance: `[n]` that its mode is right, or one of its tied modes.
        right: `[2, n]` confidence and correctness then; correctness is below 1 where modes are tied.
        wrong: `[n]` confidence otherwise, when correctness is 0.
        m: samples per question where the observed gold answer is one of the M + 1 draws behind `chance`; else None.
        groups: which questions depend on one another; None: none do.
        shared: in [0, 1], how much: the chance that the questions of a group are right and wrong together.
    """

    chance: FloatArray
    right: FloatArray
    wrong: FloatArray
    m: int | None = None
    groups: Groups | None = None
    shared: float = 0.0

    @property
    def expected(self) -> FloatArray:
        """`[n]` mean correctness of a calibrated model: its confidence without what finite M overstates."""
        return self.chance * self.right[1]

    def uniforms(self, null_draws: int, rng: np.random.Generator) -> FloatArray:
        """Variates `[null_draws, n]` for `simulate`; a share `shared` of the groups draw one variate for all members.

        Raises:
            ValueError: fewer than one draw.
        """
        return shared_uniforms((null_draws, len(self.chance)), self.groups, self.shared, rng)

    def simulate(self, uniform: FloatArray, chance: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Confidence `[null_draws, n]`, or `[n]` where all draws share it, and correctness `[null_draws, n]`.

        Args:
            uniform: `[null_draws, n]` variates, see `uniforms`.
            chance: `[n]`, to replace that of the null.
        """
        is_right = uniform < (self.chance if chance is None else chance)
        same = np.array_equal(self.right[0], self.wrong)
        confidence = self.wrong if same else np.where(is_right, self.right[0], self.wrong)
        return confidence, np.where(is_right, self.right[1], 0.0)

    def grouped(self, correct: FloatArray, group: ArrayLike | None) -> Chances:
        """The same, as dependent within groups as the observed correctness is.

        Questions of a group that are right and wrong together make the error of a data set vary more than independent
        ones do. How far they go together is measured: the products of their residuals (correctness minus chance,
        centred at every level of chance, so that miscalibration is not taken for dependence), summed over the pairs of
        all groups, as a share of what they would be if the members of a group were right and
        wrong as one (cut to [0, 1]; an intraclass correlation). A group that shares its gold answer comes out near 1,
        questions that are only of one kind near 0.

        Args:
            correct: `[n]` as observed.
            group: `[n]` labels; None: independent.
        """
        clusters = groups(group, len(correct))
        if clusters.count == len(correct):
            return self
        residual = _centred(correct - self.expected, self.expected)
        residual *= 1.0 if self.m is None else (self.m + 1) / self.m
        order = np.argsort(clusters.index, kind="stable")
        pairs = []
        for rows in np.split(order, np.flatnonzero(np.diff(clusters.index[order])) + 1):
            r, p, right = residual[rows], self.chance[rows], self.right[1][rows]
            together = np.outer(right, right) * (np.minimum.outer(p, p) - np.outer(p, p))
            pairs.append((r.sum() ** 2 - (r**2).sum(), together.sum() - np.trace(together)))
        observed, most = np.array(pairs).T  # each [group]
        if most.sum() <= 0:
            return replace(self, groups=clusters)
        ratio = observed.sum() / most.sum()
        error = np.sqrt(((observed - ratio * most) ** 2).sum()) / most.sum()
        return replace(self, groups=clusters, shared=float(np.clip(ratio + error, 0, 1)))


def _centred(residual: FloatArray, expected: FloatArray) -> FloatArray:
    """Residuals `[n]` minus their mean over LEVELS parts of the questions, from those expected to be right least."""
    parts = np.array_split(np.argsort(expected, kind="stable"), min(LEVELS, max(1, len(expected) // 20)))
    centred = residual.copy()
    for rows in parts:
        centred[rows] -= residual[rows].mean()
    return centred


def exact_chances(confidence: ArrayLike) -> Chances:
    """For questions whose B-confidence `[n]` is known exactly; ValueError unless it is one row of shares in [0, 1]."""
    exact = in_unit_interval("confidence", confidence)
    if exact.ndim != 1:
        raise ValueError(f"confidence must be one row [n], got shape {exact.shape}")
    return Chances(exact, np.stack([exact, np.ones_like(exact)]), exact)


def exchange_chances(counts: ArrayLike, gold: ArrayLike) -> Chances:
    """For questions whose gold answer changes places with one of the samples: exact for independent questions.

    If the gold answer is one more draw from the model's own class distribution, the M samples of a question and its
    gold answer are M + 1 exchangeable draws. A simulated data set takes one of them at random as gold and the other M
    as samples (see `exchange.py`). Nothing is estimated, so the p-value is uniform under the hypothesis at any n, M and
    K. `simulated_null`, which takes the frequencies for the truth, is too narrow at small M or flat classes.

    If the pool of M + 1 draws has a single most frequent class and the new gold answer is one of it, the mode of the
    other M is right; or, where losing one makes it a tie, right with the chance of a fair draw. Otherwise the new gold
    answer belongs to a class that is not a mode.

    Args:
        counts: `[n, K]` samples per class, every row summing to M.
        gold: `[n]` index of the one gold class in its row, -1 where it was never sampled.

    Raises:
        ValueError: counts are not counts of one M; a gold index outside its row.
    """
    pool, _ = pooled(counts, gold)
    m = int(pool[0].sum()) - 1
    first, second = -np.partition(-pool, 1, axis=1)[:, :2].T
    level = (pool == second[:, None]).sum(axis=1)  # classes that the mode ties with if they differ by one
    correct = np.where(first - 1 > second, 1.0, 1.0 / (1 + level))
    return Chances(
        np.where(first > second, first / (m + 1), 0.0),
        np.stack([(first - 1) / m, correct]),
        np.minimum(first, m) / m,
        m,
    )


def left_out_chances(
    left_out: ArrayLike, counts: ArrayLike, confidence: ArrayLike, correct: ArrayLike, part: ArrayLike
) -> Chances:
    """For questions whose confidence is by mass, from all samples but one.

    The sample left out and the gold answer of a calibrated model come from one distribution, and the confidence knows
    neither. So the chance that a confidence c is right is the share of samples left out that agreed with a top class of
    confidence c: an isotonic regression of agreement on confidence over all samples of all questions, with the gold
    answers among them as one draw more. It equals c where all wordings have been seen, and less where the largest of
    few shares overstates the largest probability. Where t classes are tied on top, one of them is right with up to t
    times that chance, and counts for 1 / t, as observed.

    Args:
        left_out: `[n, K, 4]` as in `ClassTable.left_out`.
        counts: `[n, K]` samples per class.
        confidence, correct, part: `[n]` as observed, see `ClassTable.left_out_drawn`.
    """
    said, agreed, *_ = np.moveaxis(np.asarray(left_out, dtype=np.float64), -1, 0)
    times, observed, right, worth = (np.asarray(a, dtype=np.float64) for a in (counts, confidence, correct, part))
    drawn = times > 0
    x, y = np.concatenate([said[drawn], observed]), np.concatenate([agreed[drawn], right])
    weight = np.concatenate([times[drawn], np.ones(len(times))])
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y, sample_weight=weight)
    chance = np.minimum(np.asarray(fitted.predict(observed), dtype=np.float64) / worth, 1.0)
    return Chances(chance, np.stack([observed, worth]), observed, int(times[0].sum()))


def chances_of(table: ClassTable, *, by_mass: bool) -> Chances | None:
    """The calibrated twins of a table's questions, as dependent within its groups as they are observed to be.

    Args:
        table: the questions.
        by_mass: whether confidence is by mass (`ClassTable.by_mass_left_out`) or a share of the samples (`by_count`).

    Returns:
        None where a question has several correct classes and confidence is a share of samples: its gold answer is not
        one draw.

    Raises:
        ValueError: by mass, but the table has no masses.
    """
    found = table.by_mass_left_out if by_mass else table.by_count
    if found is None:
        raise ValueError("this needs confidence by mass, but the table has no log-probabilities, or M is 1")
    if table.enumerated:
        return exact_chances(found.plug_in).grouped(found.correct, table.groups)
    if by_mass:
        assert table.left_out is not None
        assert table.left_out_drawn is not None
        confidence, _, correct, part = table.left_out_drawn.T
        chances = left_out_chances(table.left_out, table.sampled_counts, confidence, correct, part)
    elif table.single_gold is None:
        return None
    else:
        chances = exchange_chances(table.sampled_counts, table.single_gold)
    return chances.grouped(found.correct, table.groups)
