"""The figures behind the headline: finite M, equivalence, loss gap, remedies, closed sets of classes.

Everything is computed from a class table, without the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.score.read_answers import Read, class_table, measure
from semcal.calibration.estimators.finite_m import estimates, m_curve
from semcal.calibration.estimators.recalibration import remedies
from semcal.calibration.inference.equivalence import equivalence
from semcal.calibration.measures.closed_set import ClosedSet, classwise, skce
from semcal.calibration.measures.loss_gap import loss_gap, simulated_loss_gap
from semcal.calibration.nulls.null import chances_of
from semcal.calibration.plots.profile import ProfileRow
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import Calibration
from semcal.questions.question import CONTINUATION
from semcal.sampling.records import LENGTH
from semcal.seeds import keyed_generator
from semcal.semantics.answer_tree import TokenTilt, token_tilt
from semcal.semantics.class_table import UNEXPLORED, ClassTable
from semcal.semantics.collapsing.surface import first_token, first_word, length

FOLDS = 5


def sections(cell: Cell, table: ClassTable, read: Sequence[Read], *, closed: bool) -> dict[str, Any]:
    """Sections of calibration.json next to the headline; None where this run has no data for a section.

    `read` are the run's answers, read by its own B; `closed`: all questions share one set of classes.
    """
    detail = cell.calibration.detail(cell.seed)
    found: dict[str, Any] = {"finite_m": None, "m_curve": None}
    if not table.enumerated:
        curve = m_curve(table, resampling=detail)
        rows = estimates(table, curve=curve, resampling=detail)
        found = {"finite_m": [asdict(row) for row in rows], "m_curve": curve.rows()}
    found |= {"equivalence": _equivalence(table, cell.calibration.delta, detail)} | _loss(table, read, detail)
    return found | {"closed": _closed(table, detail) if closed else None}


def _equivalence(table: ClassTable, delta: float, detail: Resampling) -> dict[str, Any] | None:
    """By mass where masses are known; by counts where each question has one gold class."""
    by_mass = table.by_mass is not None
    if (chances := chances_of(table, by_mass=by_mass)) is None:
        return None
    pairs = table.by_mass or table.by_count
    found = equivalence(chances, pairs.plug_in, pairs.correct, delta=delta, resampling=detail)
    return asdict(found) | {"holds": found.holds, "confidence": "by mass" if by_mass else "plug-in"}


def _loss(table: ClassTable, read: Sequence[Read], detail: Resampling) -> dict[str, Any]:
    """Loss gap and remedies, by mass where masses are known. They hold groups out, so there must be enough groups."""
    by_mass = table.by_mass is not None
    pairs, m, group = table.by_mass or table.by_count, None if by_mass else table.m, table.groups
    if len(set(group)) < FOLDS or not pairs.correct.min() < pairs.correct.max():
        return {"loss_gap": None, "remedies": None}
    common: dict[str, Any] = {"m": m, "group": group, "folds": FOLDS}
    gap = loss_gap(pairs.plug_in, pairs.correct, resampling=detail, **common)
    section: dict[str, Any] = {name: getattr(gap, name) for name in ("estimate", "low", "high", "mean_tilt")}
    section["confidence"] = "by mass" if by_mass else "plug-in"
    if (chances := chances_of(table, by_mass=by_mass)) is not None:
        uniform = keyed_generator(detail.seed, "null", "loss_gap").random((detail.null_draws, len(table)))
        confidence, correct = chances.simulate(uniform)
        confidence = np.broadcast_to(confidence, correct.shape)
        null = simulated_loss_gap(confidence, correct, seed=detail.seed, **common)
        section |= {"null_mean": null.mean, "excess": null.excess(gap.estimate), "p_value": null.p_value(gap.estimate)}
    if table.enumerated:
        section["by_token"] = asdict(_token_tilt(table, read, gap.tilts))
    try:
        cured = [asdict(r) for r in remedies(pairs.plug_in, pairs.correct, resampling=detail, **common)]
    except ValueError:  # a training part in which all answers are right, or all wrong, has nothing to fit
        cured = None
    return {"loss_gap": section, "remedies": cured}


def _closed(table: ClassTable, detail: Resampling) -> dict[str, Any] | None:
    """Beyond the top class, where all questions share a closed set of classes and each has one gold class."""
    if table.single_gold is None:
        return None
    labels = sorted({label for own in table.classes for label in own} - {UNEXPLORED})
    column = {label: k for k, label in enumerate(labels)}
    whole = table.shares if table.enumerated else table.sampled_counts
    laid_out, gold = np.zeros((len(table), len(labels))), np.full(len(table), -1)
    for row, own in enumerate(table.classes):
        for k, label in enumerate(own):
            if label in column:
                laid_out[row, column[label]] = whole[row, k]
                gold[row] = column[label] if table.gold[row, k] else gold[row]
    shared = (ClosedSet.of_masses if table.enumerated else ClosedSet.of_counts)(laid_out, gold)
    kernel = skce(shared, null_draws=detail.null_draws, seed=detail.seed)
    by_class = classwise(shared, null_draws=detail.null_draws, seed=detail.seed)
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


def _token_tilt(table: ClassTable, read: Sequence[Read], tilts: np.ndarray) -> TokenTilt:
    """The same tilts applied token by token, through the intermediate B-confidences of the enumerated answers."""
    explored = [at for at, r in enumerate(read) if r.classes]
    answers = [read[at] for at in explored]
    return token_tilt(
        [[tuple(ids) for ids in r.samples["token_ids"]] for r in answers],
        [r.weights for r in answers],
        [[label == table.top[at] for label in read[at].classes] for at in explored],
        [[label in r.gold for label in r.classes] for r in answers],
        tilts[explored],
    )


def profile(
    cell: Cell, questions: pd.DataFrame, read: Sequence[Read], table: ClassTable, own: Calibration
) -> list[ProfileRow]:
    """One row for each B that the run has data for: first token, first word, length in words, the run's own.

    The first three see the gold answer as the run's style writes it (columns `written` and `written_ids` of its
    questions); of several correct answers, the first. A served model has no first token, and a text that is only
    continued no length. `table` and `own` are the class table and calibration under the run's own B.
    """
    detail, rows = cell.calibration.detail(cell.seed), []
    for name, found in _surfaces(cell, questions, read).items():
        if found:
            seen = list(found.values())
            classes = class_table(cell, questions.iloc[list(found)], seen)
            rows.append(ProfileRow.of(name, classes.mean_classes, measure(classes, seen, detail)))
    return [*rows, ProfileRow.of(f"meaning ({cell.semantics.label})", table.mean_classes, own)]


def _surfaces(cell: Cell, questions: pd.DataFrame, read: Sequence[Read]) -> dict[str, dict[int, Read]]:
    """Name of a B -> row of each question whose gold answer it can see -> the question's answers as classes."""
    by_token, by_word, by_length = {}, {}, {}
    limit = cell.sampling.length(cell.style)
    for row, (text, ids, answers) in enumerate(zip(questions["written"], questions["written_ids"], read, strict=True)):
        cut = [finish == LENGTH for finish in answers.samples["finish"].tolist()]
        texts = list(zip(answers.samples["text"], cut, strict=True))
        if len(ids):
            by_token[row] = _seen(answers, map(first_token, answers.samples["token_ids"]), first_token(ids))
        by_word[row] = _seen(answers, (first_word(t, cut=c) for t, c in texts), first_word(text))
        if cell.style != CONTINUATION:  # where the length is that of the limit, and of the excerpt for gold
            gold = length(text, cut=len(ids) >= limit)  # an answer needs one token more, to end
            by_length[row] = _seen(answers, (length(t, cut=c) for t, c in texts), gold)
    return {"first token": by_token, "first word": by_word, "length in words": by_length}


def _seen(answers: Read, classes: Iterable[str], gold: str) -> Read:
    """The same samples under another B."""
    return replace(answers, classes=tuple(classes), gold=frozenset({gold}))
