"""The class table: for each question its semantic classes, how often and how probably they were answered, and which
are correct.

It owns the order of questions and classes; every other part of the analysis takes a view of it and derives nothing
again. Knows neither texts nor how classes were formed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semcal.arrays import FloatArray, IntArray
from semcal.errors import UserError
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import (
    EXCESS_MASS,
    Confidences,
    checked_counts,
    checked_gold,
    checked_index,
    checked_masses,
    class_masses,
    confidences,
    confidences_of_masses,
    left_out_by_mass,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
UNPARSED = "(unparsed)"
UNEXPLORED = "(unexplored)"
LEFT_OUT = ("left_out_confidence", "left_out_agreement", "left_out_correct", "left_out_part")
COLUMNS = ("question_id", "group", "class", "count", "mass", "seen_mass", "gold", "unparsed", *LEFT_OUT)
LOG_SEEN = "log_seen"  # a column that tables of earlier versions lack; then it is unknown


@dataclass(frozen=True)
class ClassTable:
    """The semantic classes of a run's answers. K is the largest number of classes of any question; rows are padded.

    Classes of a question are in descending order of their counts (of their masses where answers were enumerated), ties
    in alphabetical order; correct classes that were never sampled come last.

    Attributes:
        questions: [question] ids.
        groups: [question] labels; questions of one group depend on each other.
        classes: [question][class] labels.
        counts: [question, K] samples per class, int64, rows sum to M; None where answers were enumerated.
        masses: [question, K] probabilities of the classes; None where the log-probability of an answer is unknown.
            From samples: estimates that sum to 1 (`class_masses`). From enumeration: lower bounds.
        seen_mass: [question] probability of the distinct answers that were seen, in [0, 1]; NaN where unknown.
        gold: [question, K] whether a class is correct. The unparsed class never is.
        unparsed: [question] column of the class of answers that could not be parsed, -1 where every answer could.
        left_out: [question, K, 4] confidence by mass, agreement, correctness, and the part that one of several tied
            classes counts for, when one sample of a class is left out (`left_out_by_mass`); NaN where a class was not
            sampled, None where masses are unknown, enumerated, or M is below 2.
        log_seen: [question, K] log-probability, in nats, of the distinct answers of a class that were seen, together:
            at most that of the class. −inf where none was; None where log-probabilities are unknown or answers were
            enumerated (then `masses` are it).

    Raises:
        ValueError: the shapes disagree, or neither counts nor masses are given.
    """

    questions: tuple[str, ...]
    groups: NDArray[np.str_]
    classes: tuple[tuple[str, ...], ...]
    counts: IntArray | None
    masses: FloatArray | None
    seen_mass: FloatArray
    gold: NDArray[np.bool_]
    unparsed: IntArray
    left_out: FloatArray | None = None
    log_seen: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.questions)
        wide = [array.shape for array in (self.counts, self.masses, self.gold) if array is not None]
        if len(wide) == 1:
            raise ValueError("a class table needs counts or masses")
        if len(set(wide)) > 1 or any(len(array) != n for array in (self.groups, self.classes, self.gold)):
            raise ValueError(f"{n} questions, but arrays of shapes {', '.join(map(str, wide))}; expected [question, K]")

    @classmethod
    def of_arrays(
        cls,
        counts: Any = None,
        gold: Any = None,
        unparsed: Any = None,
        *,
        masses: Any = None,
        groups: Any = None,
    ) -> ClassTable:
        """A table from arrays alone; classes are named after their columns and questions after their rows.

        Args:
            counts: [question, K] samples per class, every row summing to M; None: `masses` are those of an enumeration.
            gold: [question, K] bool, or [question] column of the one correct class, -1 where it was never sampled.
            unparsed: [question] column, -1 for none. It is never correct.
            masses: [question, K] probabilities; rows sum to at most 1.
            groups: [question] labels; None: each question is a group of its own.

        Raises:
            ValueError: counts that are not counts of one M, masses that are not probabilities, or a column outside its
                row.
        """
        samples = None if counts is None else checked_counts(counts)[0]
        probabilities = None if masses is None else checked_masses(masses)
        whole = probabilities if samples is None else samples
        if whole is None:
            raise ValueError("a class table needs counts or masses")
        n, width = whole.shape
        ids = np.char.zfill([str(i) for i in range(n)], len(str(n)))  # sorted as text, they keep their order
        column = checked_index("unparsed", unparsed, whole)
        names = [str(k) for k in range(width)]
        return cls(
            questions=tuple(ids.tolist()),
            groups=ids if groups is None else np.array([str(group) for group in groups]),
            classes=tuple(tuple(UNPARSED if k == c else name for k, name in enumerate(names)) for c in column),
            counts=samples,
            masses=probabilities,
            seen_mass=np.full(n, np.nan),
            gold=checked_gold(whole, np.zeros(whole.shape, dtype=bool) if gold is None else gold, unparsed),
            unparsed=column,
        )

    @classmethod
    def of_answers(
        cls,
        questions: Sequence[str],
        groups: Sequence[str] | NDArray[np.str_],
        classes: Sequence[Sequence[str]],
        weights: Sequence[Sequence[float]],
        gold: Sequence[frozenset[str]],
        *,
        enumerated: bool = False,
    ) -> ClassTable:
        """A table of answers whose classes are known.

        A question of which enumeration found no answer, and that has no gold class, gets the one class UNEXPLORED.

        Args:
            questions, groups: [question].
            classes: [question][answer] the class of each distinct answer.
            weights: [question][answer] how often it was sampled, or its probability if it was enumerated.
            gold: [question] the correct classes, whether they were sampled or not.
            enumerated: whether weights are probabilities. From samples, masses stay None.
        """
        total: list[Mapping[str, float]] = []
        for labels, own in zip(classes, weights, strict=True):
            weight: dict[str, float] = {}
            for label, w in zip(labels, own, strict=True):
                weight[label] = weight.get(label, 0) + w
            total.append(weight)
        ordered = [_ordered(weight, right) or (UNEXPLORED,) for weight, right in zip(total, gold, strict=True)]
        shape = (len(ordered), max(map(len, ordered)))
        whole, correct, unparsed = np.zeros(shape), np.zeros(shape, dtype=bool), np.full(shape[0], -1)
        for row, labels in enumerate(ordered):
            for column, label in enumerate(labels):
                whole[row, column] = total[row].get(label, 0)
                correct[row, column] = label in gold[row] and label != UNPARSED
                if label == UNPARSED:
                    unparsed[row] = column
        return cls(
            questions=tuple(questions),
            groups=np.asarray(groups).astype(str),
            classes=tuple(ordered),
            counts=None if enumerated else whole.astype(np.int64),
            masses=whole if enumerated else None,
            seen_mass=whole.sum(1) if enumerated else np.full(shape[0], np.nan),
            gold=correct,
            unparsed=unparsed,
        )

    def with_masses(
        self, classes: Sequence[Sequence[str]], counts: Sequence[Sequence[int]], logprobs: Sequence[Sequence[Any]]
    ) -> ClassTable:
        """The same table with class masses, from the log-probabilities of its distinct answers (`class_masses`).

        Where a log-probability is unknown (None or NaN), or answers were enumerated, the table stays as it is; so
        where log-probabilities add up to more than 1, which a warning says.

        Args:
            classes, counts, logprobs: [question][answer] as in `of_answers`, log-probabilities in nats.
        """
        logprob = np.array([np.nan if p is None else p for some in logprobs for p in some], dtype=np.float64)
        if self.enumerated or np.isnan(logprob).any():
            return self
        total = np.bincount(np.repeat(np.arange(len(self)), [len(s) for s in classes]), np.exp(logprob), len(self))
        if total.max() > EXCESS_MASS:
            log.warning(
                "the answers of question %r have a total probability of %.2f, as where a server rounds much; "
                "confidence by mass is left out",
                *(self.questions[int(total.argmax())], total.max()),
            )
            return self
        column = [{label: k for k, label in enumerate(labels)} for labels in self.classes]
        row = np.repeat(np.arange(len(self)), [len(some) for some in classes])
        of_class = [column[at][label] for at, some in enumerate(classes) for label in some]
        count = np.concatenate([np.asarray(some, dtype=int) for some in counts])
        masses = class_masses(row, of_class, count, logprob, shape=self.gold.shape)
        seen_mass = np.minimum(1.0, np.bincount(row, np.exp(logprob), len(self)))
        log_seen = np.full(self.gold.size, -np.inf)
        np.logaddexp.at(log_seen, row * self.gold.shape[1] + of_class, logprob)  # exp of a long chain's may be 0
        left_out = left_out_by_mass(row, of_class, count, logprob, self.gold) if (self.m or 0) > 1 else None
        known = {
            "masses": masses,
            "seen_mass": seen_mass,
            "log_seen": np.minimum(log_seen, 0.0).reshape(self.gold.shape),
        }
        return replace(self, left_out=left_out, **known)

    def coarser(self, of: Callable[[str], str]) -> ClassTable:
        """The same answers under a B that joins classes: class -> coarser class.

        Counts, enumerated masses and the mass seen of a class add up; masses estimated from samples are left unknown.
        """
        classes = [[of(label) for label in labels] for labels in self.classes]
        whole = self.masses if self.counts is None else self.counts
        assert whole is not None
        weights = [row[: len(labels)].tolist() for row, labels in zip(whole, classes, strict=True)]
        gold = [frozenset(map(of, labels)) for labels in self.gold_classes]
        joined = ClassTable.of_answers(self.questions, self.groups, classes, weights, gold, enumerated=self.enumerated)
        if self.log_seen is None:
            return replace(joined, seen_mass=self.seen_mass)
        log_seen = np.full(joined.gold.shape, -np.inf)
        for row, labels in enumerate(classes):
            column = [joined.classes[row].index(label) for label in labels]
            np.logaddexp.at(log_seen[row], column, self.log_seen[row, : len(labels)])
        return replace(joined, seen_mass=self.seen_mass, log_seen=np.minimum(log_seen, 0.0))

    # ---- size and order ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def enumerated(self) -> bool:
        """Whether answers were enumerated with their probabilities instead of sampled."""
        return self.counts is None

    @property
    def m(self) -> int | None:
        """Samples per question, M; None where answers were enumerated."""
        return None if self.counts is None else int(self.counts[0].sum())

    @property
    def sampled_counts(self) -> IntArray:
        """`counts`; ValueError where answers were enumerated."""
        if self.counts is None:
            raise ValueError("this needs samples, but the answers of this table were enumerated")
        return self.counts

    def select(self, rows: Any) -> ClassTable:
        """The table of some questions: row numbers or a mask, in the order given."""
        picked = np.arange(len(self))[rows]
        kept: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                kept[field.name] = tuple(value[i] for i in picked)
            else:
                kept[field.name] = None if value is None else value[picked]
        return ClassTable(**kept)

    # ---- views ---------------------------------------------------------------------------------------------------

    @cached_property
    def shares(self) -> FloatArray:
        """[question, K] estimate of the class distribution π_x: frequencies of the samples, or enumerated masses."""
        if self.counts is not None:
            return self.counts / self.counts.sum(1, keepdims=True)
        assert self.masses is not None
        return self.masses

    @cached_property
    def by_count(self) -> Confidences:
        """Confidence (plug-in), correctness and ties; of enumerated answers those of `by_mass`."""
        if self.counts is None:
            assert self.masses is not None
            return confidences_of_masses(self.masses, self.gold, self.unparsed)
        return confidences(self.counts, self.gold, self.unparsed)

    @cached_property
    def by_mass(self) -> Confidences | None:
        """Confidence, correctness and ties by mass; None where masses are unknown."""
        return None if self.masses is None else confidences_of_masses(self.masses, self.gold, self.unparsed)

    @cached_property
    def by_mass_left_out(self) -> Confidences | None:
        """As `by_mass`, from all samples but one: the estimate whose calibrated twins are known (`chances_of`).

        The sample left out is drawn by a generator seeded with the question id, so every analysis leaves out the same
        one. Enumerated answers leave nothing out. None where masses are unknown or M is below 2.
        """
        if self.enumerated:
            return self.by_mass
        if self.masses is None or self.left_out_drawn is None:
            return None
        confidence, _, correct, part = self.left_out_drawn.T
        return Confidences(confidence, correct, part < 1)

    @cached_property
    def left_out_drawn(self) -> FloatArray | None:
        """[question, 4] the row of `left_out` of one sample, see `by_mass_left_out`."""
        if self.left_out is None:
            return None
        uniform = np.array([keyed_generator(0, "left out", q).random() for q in self.questions])
        column = (uniform[:, None] >= self.shares.cumsum(axis=1)).sum(axis=1)
        return self.left_out[np.arange(len(self)), column]

    @cached_property
    def top(self) -> tuple[str, ...]:
        """[question] the semantic answer: its first class, whatever it is tied with."""
        return tuple(labels[0] for labels in self.classes)

    @cached_property
    def single_gold(self) -> IntArray | None:
        """[question] column of the gold class, -1 where it has none; None where a question has several."""
        if (self.gold.sum(axis=1) > 1).any():
            return None
        return np.where(self.gold.any(axis=1), self.gold.argmax(axis=1), -1)

    @cached_property
    def gold_classes(self) -> tuple[frozenset[str], ...]:
        """[question] labels of the correct classes."""
        return tuple(
            frozenset(label for label, right in zip(labels, row, strict=False) if right)
            for labels, row in zip(self.classes, self.gold, strict=True)
        )

    @cached_property
    def distributions(self) -> tuple[dict[str, float], ...]:
        """[question] class -> share, positive ones only: what probes predict.

        A question of which enumeration found no whole answer has the one class UNEXPLORED.
        """
        found = (
            {label: float(share) for label, share in zip(labels, row, strict=False) if share > 0}
            for labels, row in zip(self.classes, self.shares, strict=True)
        )
        return tuple(masses or {UNEXPLORED: 1.0} for masses in found)

    @property
    def mean_classes(self) -> float:
        """Mean number of classes that the answers of a question fall into."""
        return float((self.shares > 0).sum(axis=1).mean())

    @property
    def unparsed_share(self) -> float:
        """Share of all samples that could not be parsed (of the mass, where answers were enumerated)."""
        whole = self.shares if self.counts is None else self.counts
        unread = np.where(self.unparsed >= 0, whole[np.arange(len(self)), self.unparsed], 0)
        return float(unread.mean() if self.counts is None else unread.sum() / whole.sum())

    # ---- as a table on disk --------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row per question and class, columns COLUMNS and LOG_SEEN; `count` is absent where answers were
        enumerated."""
        rows = [(q, k) for q, labels in enumerate(self.classes) for k in range(len(labels))]
        row, column = (np.array(part, dtype=np.int64) for part in zip(*rows, strict=True)) if rows else ([], [])
        import pandas as pd  # slow to import: a study is checked without it

        frame = pd.DataFrame(
            {
                "question_id": np.array(self.questions, dtype=object)[row],
                "group": self.groups[row].astype(object),
                "class": [self.classes[q][k] for q, k in rows],
                "count": pd.NA if self.counts is None else self.counts[row, column],
                "mass": np.nan if self.masses is None else self.masses[row, column],
                "seen_mass": self.seen_mass[row],
                "gold": self.gold[row, column],
                "unparsed": self.unparsed[row] == column,
            }
            | {
                name: np.nan if self.left_out is None else self.left_out[row, column, i]
                for i, name in enumerate(LEFT_OUT)
            }
            | {LOG_SEEN: np.nan if self.log_seen is None else self.log_seen[row, column]}
        )
        return frame.astype({"count": "Int64"})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> ClassTable:
        """The table that `to_frame` wrote.

        Raises:
            UserError: a table of another version of semcal.
        """
        import pandas as pd

        if missing := [name for name in COLUMNS if name not in frame]:
            raise UserError(
                f"classes.parquet has no column {missing[0]!r}: it was written by an earlier version of semcal"
            )
        row, questions = pd.factorize(frame["question_id"])
        column = frame.groupby("question_id", sort=False).cumcount().to_numpy()
        first = frame.drop_duplicates("question_id")
        shape = (len(questions), int(column.max()) + 1)

        def laid_out(name: str, dtype: Any, padding: float = 0) -> np.ndarray:
            array = np.full(shape, padding, dtype=dtype)
            array[row, column] = frame[name].to_numpy(dtype=dtype)
            return array

        seen = LOG_SEEN in frame and not bool(frame[LOG_SEEN].isna().any())
        left_out = np.stack([laid_out(name, np.float64) for name in LEFT_OUT], axis=-1)
        read = frame["unparsed"].to_numpy(dtype=bool)
        unparsed = np.full(len(questions), -1)
        unparsed[row[read]] = column[read]
        return cls(
            questions=tuple(map(str, questions)),
            groups=first["group"].to_numpy().astype(str),
            classes=tuple(tuple(labels) for _, labels in frame.groupby("question_id", sort=False)["class"]),
            counts=None if bool(frame["count"].isna().any()) else laid_out("count", np.int64),
            masses=None if bool(frame["mass"].isna().any()) else laid_out("mass", np.float64),
            seen_mass=first["seen_mass"].to_numpy(dtype=np.float64),
            gold=laid_out("gold", bool),
            unparsed=unparsed,
            left_out=None if bool(frame[LEFT_OUT[0]].isna().all()) else left_out,
            log_seen=laid_out(LOG_SEEN, np.float64, -np.inf) if seen else None,
        )


def _ordered(weights: Mapping[str, float], gold: frozenset[str]) -> tuple[str, ...]:
    """The order of a question's classes: descending by weight, ties in alphabetical order, unseen gold classes last."""
    seen = sorted(weights, key=lambda label: (-weights[label], label))
    return (*seen, *sorted(gold - weights.keys()))
