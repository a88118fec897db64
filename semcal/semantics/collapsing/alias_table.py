"""Which forms of an answer mean the same: one table for all questions of a dataset, which knows no question.

If only the aliases of a question's own gold answer were joined, the correct class would gather mass that a wrong one
could not, and confidence would depend on the label. The table is a function of the set of alias lists alone, so that it
stays the same however gold answers are exchanged among questions.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from semcal.questions.wording import normalise
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class Aliases:
    """What is known about the forms of answers, for every question alike.

    Attributes:
        closed: Surface form -> class of a closed answer space; empty for an open one.
        pooled: Normalised form -> normalised canonical form, as `pooled` makes it.
    """

    closed: Mapping[str, str] = field(default_factory=dict)
    pooled: Mapping[str, str] = field(default_factory=dict)


def pooled(lists: Iterable[Iterable[str]]) -> dict[str, str]:
    """Normalised form -> canonical form of its entity, for every form of the lists.

    Two lists name one entity if they begin with the same form, or if each contains the first form of the other,
    directly or through others. The canonical form of an entity is the alphabetically first of these first forms. A
    form that several entities list belongs to the one that it comes first in, and otherwise to none: it is an entity of
    its own. The closure over shared forms would join the Beatles with beetles, and blue with the
    Gauss-Markov theorem, which is BLUE (docs/methods.md has the measurements).

    Args:
        lists: Equivalent forms, the preferred one first; their order and their repetitions do not matter.
    """
    distinct = {tuple(dict.fromkeys(key for form in forms if (key := normalise(form)))) for forms in lists}
    distinct = sorted(distinct - {()})
    entity = _entities(distinct)
    claims: dict[str, set[str]] = defaultdict(set)
    for first, *others in distinct:
        for form in others:
            claims[form].add(entity[first])
    return {form: min(claimed) if len(claimed) == 1 else form for form, claimed in claims.items()} | entity


def coverage(table: ClassTable, known: Mapping[str, str]) -> float:
    """Share of the wrong answers that are forms the pool knows; NaN without wrong answers.

    The forms of right answers are all known. Where those of wrong ones are not, their mass stays divided over forms,
    and the signed gap comes out too low by up to about half of (1 - coverage) times the share of answers that are
    not in their entity's usual form.
    """
    wrong = np.where(table.gold | (np.arange(table.gold.shape[1]) == table.unparsed[:, None]), 0, table.shares)
    listed = np.zeros(wrong.shape, dtype=bool)
    for row, labels in enumerate(table.classes):
        listed[row, : len(labels)] = [label in known for label in labels]
    total = wrong.sum()
    return float(wrong[listed].sum() / total) if total else float("nan")


def _entities(lists: list[tuple[str, ...]]) -> dict[str, str]:
    """First form -> the alphabetically first of the first forms of its entity (union-find)."""
    contents: dict[str, set[str]] = defaultdict(set)
    for forms in lists:
        contents[forms[0]] |= set(forms)
    parent = {first: first for first in contents}

    def root(form: str) -> str:
        while parent[form] != form:
            parent[form] = parent[parent[form]]
            form = parent[form]
        return form

    for first, forms in contents.items():
        for other in forms & contents.keys():
            if first in contents[other]:
                low, high = sorted((root(first), root(other)))
                parent[high] = low
    return {first: root(first) for first in contents}
