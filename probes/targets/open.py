"""What a probe predicts where every question has classes of its own: class distributions over all classes of a run,
kept sparsely. A closed target has the same form, so that one measure serves both.

Knows the class table; nothing of texts, models or probes. Arrays are `[entry]`, an entry being one class of one
question with positive mass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probes.targets.closed import ClassTarget, class_target, distributions_of, normalised_shares
from probes.targets.entropy import Entropies, entropies
from semcal.arrays import FloatArray, IntArray
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class OpenTarget:
    """Class distributions of n questions over all classes of their run. The entries of question i are
    `starts[i]:starts[i + 1]`, heaviest first (ties by label), and every class of a question has positive mass.

    Attributes:
        classes: [C] labels of the run's classes, sorted; classes that no question has any more may be among them.
        starts: [question + 1], first entry of each question; the last one is the number of entries.
        column: [entry], index into `classes`.
        mass: [entry], sums to 1 over the entries of a question.
        m: samples behind each question; None if masses are exact.
        name: of the target, for the column `target`.
        closed: whether no question can give a class that is not in `classes`.

    Raises:
        ValueError: no question, a question without classes, lengths that disagree, a class twice in one question, or
            masses that are not positive or do not sum to 1.
    """

    classes: tuple[str, ...]
    starts: IntArray
    column: IntArray
    mass: FloatArray
    m: int | None
    name: str = "classes"
    closed: bool = False

    def __post_init__(self) -> None:
        sizes = np.diff(self.starts)
        if not len(sizes) or self.starts[0] != 0 or not self.starts[-1] == len(self.column) == len(self.mass):
            raise ValueError(
                f"{len(self.column)} columns and {len(self.mass)} masses for {len(sizes)} questions whose entries end "
                f"at {self.starts[-1:]}; expected one of each per entry, and at least one question"
            )
        if (sizes < 1).any():
            raise ValueError(f"question {int(np.argmin(sizes))} has no class; leave it out")
        if self.m is not None and self.m < 1:
            raise ValueError(f"m is {self.m}; expected a number of samples of at least 1, or None for exact masses")
        if not ((self.column >= 0) & (self.column < len(self.classes))).all():
            raise ValueError(f"a column is not an index into {len(self.classes)} classes")
        if len(np.unique(self.question * len(self.classes) + self.column)) < len(self.column):
            raise ValueError("a question has the same class twice; add up the masses of one class first")
        valid = self.mass > 0  # False for NaN
        if not valid.all():
            entry = int(np.argmin(valid))
            question = int(self.question[entry])
            raise ValueError(f"question {question} has a class of mass {self.mass[entry]}; expected positive masses")
        total = np.add.reduceat(self.mass, self.starts[:-1])
        even = np.isclose(total, 1.0, atol=1e-6)
        if not even.all():
            row = int(np.argmin(even))
            raise ValueError(f"the masses of question {row} sum to {total[row]:g}; expected 1")

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def question(self) -> IntArray:
        """[entry], the row of each entry's question."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def one_class(self) -> bool:
        """Whether all answers are in one class, which any predictor knows."""
        return bool((self.column == self.column[0]).all())

    def select(self, rows: Any) -> OpenTarget:
        """The target of some questions, by row numbers or a mask, in the order given; the vocabulary stays."""
        picked = np.arange(len(self))[rows]
        entries = self.entries(picked)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[picked])])
        return replace(self, starts=starts, column=self.column[entries], mass=self.mass[entries])

    def columns(self, classes: Sequence[str]) -> IntArray:
        """[entry], the index of each entry's class in another order of the classes."""
        place = {label: column for column, label in enumerate(classes)}
        return np.array([place[label] for label in self.classes])[self.column]

    def entries(self, rows: Any) -> IntArray:
        """Indices of the entries of some questions, question by question in the order given."""
        picked = np.arange(len(self))[rows]
        sizes = np.diff(self.starts)[picked]
        first = np.cumsum(sizes) - sizes
        return np.repeat(self.starts[picked] - first, sizes) + np.arange(sizes.sum())

    def groups_with(self, rows: Any, group: Sequence[str]) -> IntArray:
        """[class], in how many groups some question of `rows` gives the class; `group` labels all questions."""
        entries, size = self.entries(rows), len(self.classes)
        _, code = np.unique(np.asarray(group), return_inverse=True)
        pairs = np.unique(code[self.question[entries]] * size + self.column[entries])
        return np.bincount(pairs % size, minlength=size)


@dataclass(frozen=True)
class Universe:
    """How many classes questions like those of a target may give, those that none of them gave included.

    Chao's estimator by incidence (Chao 1987, Biometrics 43:783), without its bias: of m groups of questions, f1 classes
    were given by one alone and f2 by two, so that at least (m − 1)/m · f1 (f1 − 1) / (2 (f2 + 1)) were not given. That
    is a lower bound in expectation, close where classes are about equally likely.

    Attributes:
        size: classes in all.
        told: False where classes were given by one group, and none by two: then nothing tells how many there are, and
            `size` is only what the formula makes of it.
    """

    size: float
    told: bool

    @classmethod
    def of(cls, target: OpenTarget, group: Sequence[str]) -> Universe:
        """Of all questions of a target; where that is closed, its vocabulary."""
        if target.closed:
            return cls(float(len(target.classes)), True)
        given, m = target.groups_with(slice(None), group), len(set(group))
        once, twice = int((given == 1).sum()), int((given == 2).sum())
        return cls((given > 0).sum() + (m - 1) / m * once * (once - 1) / (2 * (twice + 1)), twice > 0 or once < 2)


def open_target(table: ClassTable) -> OpenTarget:
    """The class distributions of a run over all of its classes, nothing pooled.

    Raises:
        ValueError: no question.
    """
    return open_targets([table])[0]


def open_targets(tables: Sequence[ClassTable]) -> list[OpenTarget]:
    """The class distributions of several runs over the classes of all of them: a target per table.

    Raises:
        ValueError: a table without questions.
    """
    if not all(len(table) for table in tables):
        raise ValueError("no class distributions were given; expected at least one question")
    rows = [distributions_of(table) for table in tables]
    classes = {label for own in rows for row in own for label in row}
    return [_of_rows(own, table.m, "classes", sorted(classes)) for own, table in zip(rows, tables, strict=True)]


def stacked(targets: Sequence[OpenTarget]) -> OpenTarget:
    """The questions of several targets over one vocabulary, one after the other; m is that of the first.

    Raises:
        ValueError: vocabularies that differ.
    """
    first = targets[0]
    if any(target.classes != first.classes for target in targets):
        raise ValueError("the targets have different classes; lay them over one vocabulary first (`open_targets`)")
    sizes = np.concatenate([np.diff(target.starts) for target in targets])
    column, mass = (np.concatenate([getattr(t, name) for t in targets]) for name in ("column", "mass"))
    return replace(first, starts=np.concatenate([[0], np.cumsum(sizes)]), column=column, mass=mass)


def open_entropies(table: ClassTable) -> Entropies:
    """Entropies of the distributions of `open_target`, from counts and, where known, log-probabilities."""
    return entropies(normalised_shares(table), table.m, log_seen=table.log_seen)


def drawn_once(target: OpenTarget) -> float:
    """Share of the samples in classes that their question was answered with once; 0 where masses are exact. From about
    a half on, M samples tell little of an entropy."""
    return 0.0 if target.m is None else float((np.rint(target.mass * target.m) == 1).sum() / (target.m * len(target)))


def sparse(target: ClassTarget) -> OpenTarget:
    """A target over one closed vocabulary, "(other)" included where classes are pooled, in the same form."""
    rows = [
        {label: float(mass) for label, mass in zip(target.classes, row, strict=True) if mass > 0}
        for row in target.distribution
    ]
    return replace(_of_rows(rows, target.m, target.name, target.classes), closed=True)


def pooled_share(table: ClassTable, max_classes: int) -> float:
    """Share of the mass that a closed target of `max_classes` classes pools in "(other)"; 0 where it pools nothing."""
    return class_target(table, max_classes=max_classes).pooled


def _of_rows(
    rows: Sequence[Mapping[str, float]], m: int | None, name: str, classes: Sequence[str] | None = None
) -> OpenTarget:
    """From positive masses by label, [question]; `classes`: the vocabulary, None for the labels that occur."""
    vocabulary = sorted({label for row in rows for label in row} if classes is None else classes)
    index = {label: column for column, label in enumerate(vocabulary)}
    ordered = [sorted(row.items(), key=lambda item: (-item[1], item[0])) for row in rows]
    return OpenTarget(
        classes=tuple(vocabulary),
        starts=np.concatenate([[0], np.cumsum([len(row) for row in ordered])]),
        column=np.array([index[label] for row in ordered for label, _ in row], dtype=np.int64),
        mass=np.array([mass for row in ordered for _, mass in row]),
        m=m,
        name=name,
    )
