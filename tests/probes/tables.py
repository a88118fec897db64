"""Class tables and evaluations in a line, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from probes.activations.layers import Layers
from probes.evaluation.layerwise import CrossValidation, Source, Target, evaluate_all
from probes.evaluation.result import Evaluation
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable


def table_of(
    rows: Sequence[Mapping[str, float]],
    gold: Sequence[Collection[str]] | None = None,
    *,
    group: Sequence[str] | None = None,
    enumerated: bool = False,
) -> ClassTable:
    """The table of some questions, each class -> count (or mass)."""
    correct = [set[str]()] * len(rows) if gold is None else [set(labels) for labels in gold]
    classes = [(*row, *sorted(right - row.keys())) for row, right in zip(rows, correct, strict=True)]
    weights = np.zeros((len(rows), max(map(len, classes))))
    marks = np.zeros(weights.shape, dtype=bool)
    for at, (row, labels) in enumerate(zip(rows, classes, strict=True)):
        weights[at, : len(row)] = list(row.values())
        marks[at, : len(labels)] = [label in correct[at] for label in labels]
    names = [str(i) for i in range(len(rows))]
    return ClassTable(
        questions=tuple(names),
        groups=np.array(names if group is None else group),
        classes=tuple(classes),
        counts=None if enumerated else weights.astype(np.int64),
        masses=weights if enumerated else None,
        seen_mass=np.full(len(rows), np.nan),
        gold=marks,
        unparsed=np.full(len(rows), -1),
    )


def evaluated(
    X: np.ndarray | Source,
    target: Target,
    *,
    layers: Sequence[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
    **more: Any,
) -> Evaluation:
    """`evaluate_all` for one target, with the fields of its records as keywords and `layers` naming those of an array."""
    how = {name: more.pop(name) for name in ("folds", "penalties", "permutations", "null_folds") if name in more}
    source = Layers.of(X, layers) if isinstance(X, np.ndarray) else X
    settings = {"how": CrossValidation(**how), "resampling": Resampling(bootstrap, seed=seed)}
    return evaluate_all(source, [target], **settings, **more)[0]
