"""What is computed from a cell's samples and activations, without the model: classes, calibration, probes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.config import Cell, KthWordConfig
from probes.evaluate import evaluate, evaluate_scalar
from probes.targets import b_confidence, class_target, semantic_entropy
from semcal.calibration import calibrate, calibrate_masses
from semcal.questions import CONTINUATION
from semcal.sampling import LENGTH
from semcal.semantics import (
    UNEXPLORED,
    UNPARSED,
    ClassDistribution,
    Collapse,
    ExactMatch,
    KthWord,
    count_matrix,
    expected_confidence,
)
from semcal.store import Run


def collapse_of(cell: Cell, aliases: dict[str, str]) -> Collapse:
    """The collapsing function B of a cell."""
    return KthWord(cell.semantics.k) if isinstance(cell.semantics, KthWordConfig) else ExactMatch(aliases)


def _collapsed(cell: Cell, run: Run, samples: pd.DataFrame) -> list[tuple[pd.DataFrame, list[str], ClassDistribution]]:
    """For every question: its samples, the class of each, and the distribution that they make."""
    collapse = collapse_of(cell, run.aliases())
    by_question = dict(iter(samples.groupby("question_id", sort=False)))
    empty = samples.iloc[:0]  # enumeration may have found no whole answer within its budget
    found = []
    for question in run.question_records():
        rows = by_question.get(question.id)
        rows = empty if rows is None else rows
        texts, weights = _readable(rows, cell.style), _weights(cell, rows)
        classes = [collapse.of_text(question, t, cell.style) for t in texts]
        exact = cell.sampling.exact is not None
        found.append((rows, classes, ClassDistribution.of(classes, weights, collapse.of_gold(question), exact=exact)))
    return found


def _weights(cell: Cell, rows: pd.DataFrame) -> list[Any]:
    """Counts of samples, or the probabilities that enumeration gives."""
    return list(rows["count"]) if cell.sampling.exact is None else list(np.exp(rows["logprob"]))


def _readable(rows: pd.DataFrame, style: str) -> list[str]:
    texts = list(rows["text"])
    if style != CONTINUATION:
        return texts
    cut = (rows["finish"] == LENGTH).to_list()  # the last word of a continuation that was cut may be half a word
    return [_whole_words(t) if c else t for t, c in zip(texts, cut, strict=True)]


def _whole_words(text: str) -> str:
    return re.sub(r"\S+$", "", text)


def score(cell: Cell, run: Run) -> None:
    """Collapse answers into classes and measure calibration.

    Writes classes.parquet, intermediate.parquet and calibration.json.
    """
    table, samples = run.questions(), run.samples()
    found = _collapsed(cell, run, samples)
    ids, collapsed = list(table["id"]), [d for _, _, d in found]
    run.write_classes(_class_table(ids, collapsed))
    run.write_intermediate(_intermediate_table(cell, ids, found))
    matrix = count_matrix(collapsed)
    settings: dict[str, Any] = {
        "truncated_share": _truncated_share(cell, samples),
        "group": table["group"].to_numpy(),
        "bootstrap": cell.calibration.bootstrap,
        "null_draws": cell.calibration.null_draws,
        "level": cell.calibration.level,
        "seed": cell.seed,
    }
    if cell.sampling.exact is None:
        result = calibrate(matrix.counts, matrix.gold, matrix.unparsed, m=cell.sampling.m, **settings)
    else:
        result = calibrate_masses(matrix.counts, matrix.gold, matrix.unparsed, **settings)
    run.write_calibration({"semantics": collapse_of(cell, run.aliases()).name} | result.to_dict())


def _truncated_share(cell: Cell, samples: pd.DataFrame) -> float:
    weight = np.array(_weights(cell, samples), dtype=float)
    cut = (samples["finish"] == LENGTH).to_numpy()
    return float(weight[cut].sum() / weight.sum()) if weight.sum() else float("nan")


def _class_table(ids: Sequence[str], collapsed: Sequence[ClassDistribution]) -> pd.DataFrame:
    rows = []
    for question_id, d in zip(ids, collapsed, strict=True):
        masses = d.masses if d.gold in d.masses else {**d.masses, d.gold: 0.0}
        for klass, mass in masses.items():
            count = None if d.exact else d.counts.get(klass, 0)
            rows.append((question_id, klass, count, mass, mass + d.unexplored, klass == d.gold, klass == UNPARSED))
    columns = ["question_id", "klass", "count", "mass", "mass_high", "is_gold", "is_unparsed"]
    return pd.DataFrame(rows, columns=columns).astype({"count": "Int64"})


def _intermediate_table(
    cell: Cell, ids: Sequence[str], found: Sequence[tuple[pd.DataFrame, list[str], ClassDistribution]]
) -> pd.DataFrame:
    """A row a question and token index, where token ids are known (not for served models)."""
    rows = []
    for question_id, (samples, classes, _) in zip(ids, found, strict=True):
        tokens = [tuple(t) for t in samples["token_ids"]]
        if tokens and all(tokens):
            expected = expected_confidence(tokens, _weights(cell, samples), classes)
            rows += [(question_id, i, float(value)) for i, value in enumerate(expected)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])


def probe(cell: Cell, run: Run) -> None:
    """Fit probes on the captured activations to the classes that `score` found; writes probes.parquet."""
    collapsed = _masses(run.classes())
    groups = list(run.questions()["group"])
    frames = []
    for position in cell.capture.positions:
        stored = run.activations(position)
        settings: dict[str, Any] = {
            "layers": stored.layers,
            "group": groups,
            "folds": cell.probes.folds,
            "permutations": cell.probes.permutations,
            "seed": cell.seed,
        }
        for target in cell.probes.targets:
            if target == "classes":
                m = cell.sampling.m if cell.sampling.exact is None else None
                classes = class_target(collapsed, max_classes=cell.probes.max_classes, m=m)
                frame = evaluate(stored.values, classes, **settings)
            else:
                values = {"b_confidence": b_confidence, "entropy": semantic_entropy}[target](collapsed)
                frame = evaluate_scalar(stored.values, values, name=target, **settings)
            frames.append(frame.assign(position=position))
    run.write_probes(pd.concat(frames, ignore_index=True))


def _masses(classes: pd.DataFrame) -> list[dict[str, float]]:
    """Class -> mass of every question; a class of its own where enumeration found no whole answer."""
    by_question = classes.groupby("question_id", sort=False)
    found = [{k: v for k, v in zip(q["klass"], q["mass"], strict=True) if v > 0} for _, q in by_question]
    return [masses or {UNEXPLORED: 1.0} for masses in found]
