"""From a cell's samples to semantic classes and calibration: answers read by a B, made into a class table, measured,
and written to the run folder. No model is needed except what B queries.

The sections of calibration.json are the figures behind the headline: unparsed answers, finite M, equivalence, loss gap,
remedies, closed sets of classes. They are computed from the class table.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from semcal.calibration.estimators.finite_m import estimates, m_curve
from semcal.calibration.estimators.recalibration import remedies
from semcal.calibration.estimators.unparsed import unparsed_bounds
from semcal.calibration.inference.equivalence import equivalence
from semcal.calibration.inference.risk_control import fewest_groups, gate
from semcal.calibration.measures.closed_set import ClosedSet, classwise, skce
from semcal.calibration.measures.loss_gap import loss_gap, simulated_loss_gap
from semcal.calibration.nulls.twins import chances_of
from semcal.calibration.plots.profile import ProfileRow
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import Calibration, calibrate
from semcal.questions.question import CONTINUATION, Question
from semcal.runs.run import Run
from semcal.sampling.records import LENGTH
from semcal.seeds import keyed_generator
from semcal.semantics.answer_tree import TokenTilt, expected_confidence, token_tilt
from semcal.semantics.before_answer import chains
from semcal.semantics.class_table import UNEXPLORED, ClassTable
from semcal.semantics.collapse_answers import readable
from semcal.semantics.collapsing.alias_table import Aliases, coverage
from semcal.semantics.collapsing.clustered import Clustered, at_other_thresholds
from semcal.semantics.collapsing.collapse import Collapse, collapse_blind
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.collapsing.judge import Judge
from semcal.semantics.collapsing.surface import first_token, first_word, length

FOLDS = 5
RISKS, MISSED = (0.05, 0.1, 0.2), 0.1  # shares of wrong answers, and the chance that their guarantee fails


@dataclass(frozen=True)
class Read:
    """The samples of one question, read by a collapsing function.

    Attributes:
        samples: one row per distinct answer.
        weights: [answer] counts, or the probabilities that enumeration gives.
        classes: [answer] semantic classes.
        gold: the correct classes, whether an answer fell into them or not.
    """

    samples: pd.DataFrame
    weights: list[Any]
    classes: tuple[str, ...]
    gold: frozenset[str]


def score(cell: Cell, run: Run, tell: Callable[[str], None] = lambda _: None) -> None:
    """Collapse answers into classes and measure calibration.

    Writes classes.parquet, intermediate.parquet and calibration.json.

    Args:
        tell: receives the progress of a B that queries a model.
    """
    aliases = run.aliases()
    collapse = collapse_of(cell.semantics, aliases, tell)
    read, questions = read_answers(cell, run, collapse), run.questions()
    table = class_table(cell, questions, read)
    run.write_classes(table)
    run.write_intermediate(_intermediate_table(table.questions, read))
    headline = measure(table, read, cell.calibration.resampling(cell.seed))
    rows = profile(cell, questions, read, table, headline)
    judge = collapse.cluster if isinstance(collapse, Clustered) else None
    failures = judge.failures if isinstance(judge, Judge) else {}
    run.write_calibration(
        {"semantics": collapse.name, **{f"judge_failed_to_{what}": n for what, n in failures.items()}}
        | headline.to_dict()
        | _matched_gold(table, collapse, aliases)
        | sections(cell, table, read, closed=len(aliases.closed) > 0)
        | {"thresholds": _thresholds(cell, run, collapse, table, headline)}
        | {"profile": [asdict(row) for row in rows], "chains": _chains(cell, read)}
    )


def _matched_gold(table: ClassTable, collapse: Collapse, aliases: Aliases) -> dict[str, Any]:
    """How gold answers met classes that were made without them.

    Questions whose gold answer is in several classes (all of them correct), and, for exact match in an open answer
    space, the share of wrong answers whose forms the alias table knows.
    """
    open_exact = isinstance(collapse, ExactMatch) and not aliases.closed
    return {
        "gold_in_several_classes": int((table.gold.sum(axis=1) > 1).sum()),
        "wrong_answers_with_known_forms": coverage(table, aliases.pooled) if open_exact else None,
    }


def _thresholds(
    cell: Cell, run: Run, collapse: Collapse, table: ClassTable, headline: Calibration
) -> list[dict[str, float]] | None:
    """The headline under B's own threshold, `table` and `headline`, and under the two beside it; None without one."""
    found = {}
    for threshold, b in at_other_thresholds(collapse).items():
        read = read_answers(cell, run, b)
        other = class_table(cell, run.questions(), read)
        found[threshold] = other, measure(other, read, cell.calibration.resampling(cell.seed))
    if not found:
        return None
    found[cell.semantics.threshold] = table, headline  # pyright: ignore[reportAttributeAccessIssue]
    figures = ("confidence", "accuracy", "smece", "null_mean", "excess")
    return [
        {"threshold": threshold, "classes_per_question": classes.mean_classes}
        | {name: float(getattr(measured, name)) for name in figures}
        for threshold, (classes, measured) in sorted(found.items())
    ]


def _chains(cell: Cell, read: Sequence[Read]) -> dict[str, Any] | None:
    """What the samples hold before the answering phrase, with a warning where chains of thought are all alike."""
    if cell.style == CONTINUATION:
        return None
    texts = [readable_texts(r.samples, cell.style) for r in read]
    found = chains(texts, [r.weights for r in read], cell.style, m=None if cell.enumerated else cell.sampling.m)
    return found and asdict(found) | {"warning": found.warning(cell.style)}


def _intermediate_table(ids: Sequence[str], read: Sequence[Read]) -> pd.DataFrame:
    """One row per question and token index, where token ids are known (not for served models)."""
    rows = []
    for question_id, answers in zip(ids, read, strict=True):
        tokens = [tuple(t) for t in answers.samples["token_ids"]]
        if tokens and all(tokens):
            expected = expected_confidence(tokens, answers.weights, answers.classes)
            rows += [(question_id, i, float(value)) for i, value in enumerate(expected)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])


# ---- answers as classes --------------------------------------------------------------------------------------------


def read_answers(cell: Cell, run: Run, collapse: Collapse) -> list[Read]:
    """The answers of every question as classes, in the order of `run.questions()`."""
    return read_samples(cell, run.question_records(), run.samples(), collapse)


def read_samples(cell: Cell, questions: Sequence[Question], samples: pd.DataFrame, collapse: Collapse) -> list[Read]:
    """The answers to some questions as classes, in their order."""
    by_question = dict(iter(samples.groupby("question_id", sort=False)))
    empty = samples.iloc[:0]  # enumeration may have found no whole answer within its budget
    rows: list[pd.DataFrame] = [by_question.get(q.id, empty) for q in questions]  # pyright: ignore[reportAssignmentType]
    texts = [readable_texts(answers, cell.style) for answers in rows]
    found = collapse_blind(collapse, questions, texts, cell.style)
    weights = [list(np.exp(r["logprob"])) if cell.enumerated else list(r["count"]) for r in rows]
    return [Read(r, w, b.classes, b.gold) for r, w, b in zip(rows, weights, found, strict=True)]


def readable_texts(rows: pd.DataFrame, style: str) -> list[str]:
    """The texts of some samples as B may read them."""
    return [readable(text, finish, style) for text, finish in zip(rows["text"], rows["finish"], strict=True)]


def class_table(cell: Cell, questions: pd.DataFrame, read: Sequence[Read]) -> ClassTable:
    """The class table of answers that have been read.

    Masses come from the log-probabilities of the samples, where all are known, or are those that enumeration found.

    Args:
        questions: their rows of `Run.questions`, in the order of `read`.
    """
    classes, weights = [r.classes for r in read], [r.weights for r in read]
    ids, groups, gold = list(questions["id"]), questions["group"].to_numpy(), [r.gold for r in read]
    table = ClassTable.of_answers(ids, groups, classes, weights, gold, enumerated=cell.enumerated)
    return table.with_masses(classes, weights, [list(r.samples["logprob"]) for r in read])


def measure(table: ClassTable, read: Sequence[Read], resampling: Resampling) -> Calibration:
    """Every figure of calibration of answers that have been read."""
    weight = np.concatenate([np.array(r.weights, dtype=float) for r in read])
    cut = np.array([finish for r in read for finish in r.samples["finish"].tolist()]) == LENGTH
    truncated = float(weight[cut].sum() / weight.sum()) if weight.sum() else float("nan")
    return calibrate(table, resampling=resampling, truncated_share=truncated)


# ---- sections of calibration.json ----------------------------------------------------------------------------------


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
    found |= {"unparsed": _unparsed(table), "closed": _closed(table, detail) if closed else None}
    return found | {"gates": _gates(table)}


def _gates(table: ClassTable) -> list[dict[str, float]] | None:
    """Thresholds on B-confidence that keep some risks; None with too few groups to show any."""
    groups, found = table.groups.tolist(), []
    for risk in RISKS:
        if len(set(groups)) >= fewest_groups(risk, MISSED):
            one = gate(table.by_count.plug_in, table.by_count.correct, groups, risk=risk, delta=MISSED)
            threshold = one.threshold if np.isfinite(one.threshold) else None
            found.append({"risk": risk, "threshold": threshold, "coverage": one.coverage, "wrong": one.wrong})
    return found or None


def _unparsed(table: ClassTable) -> dict[str, Any] | None:
    """How far the headline smECE depends on what the unparsed answers were; None where all were parsed."""
    if not table.unparsed_share > 0:
        return None
    found = unparsed_bounds(table)
    return {
        "share": found.share,
        "least_smece": found.least,
        "most_smece": found.most,
        "parsed_only_smece": found.parsed_only.smece,
        "parsed_only_signed_gap": found.parsed_only.signed_gap,
        "left_out": found.left_out,
    }


def _equivalence(table: ClassTable, delta: float, detail: Resampling) -> dict[str, Any] | None:
    """By mass where masses are known; by counts where each question has one gold class."""
    by_mass = table.by_mass_left_out is not None
    if (chances := chances_of(table, by_mass=by_mass)) is None:
        return None
    pairs = table.by_mass_left_out or table.by_count
    found = equivalence(chances, pairs.correct, delta=delta, resampling=detail)
    return asdict(found) | {"holds": found.holds, "confidence": "by mass" if by_mass else "plug-in"}


def _loss(table: ClassTable, read: Sequence[Read], detail: Resampling) -> dict[str, Any]:
    """Loss gap and remedies, by mass where masses are known. They hold groups out, so there must be enough groups."""
    by_mass = table.by_mass_left_out is not None
    pairs, m, group = table.by_mass_left_out or table.by_count, None if by_mass else table.m, table.groups
    if len(set(group)) < FOLDS or not pairs.correct.min() < pairs.correct.max():
        return {"loss_gap": None, "remedies": None}
    common: dict[str, Any] = {"m": m, "group": group, "folds": FOLDS}
    gap = loss_gap(pairs.plug_in, pairs.correct, resampling=detail, **common)
    section: dict[str, Any] = {name: getattr(gap, name) for name in ("estimate", "low", "high", "mean_tilt")}
    section["confidence"] = "by mass" if by_mass else "plug-in"
    if (chances := chances_of(table, by_mass=by_mass)) is not None:
        uniform = chances.uniforms(detail.null_draws, keyed_generator(detail.seed, "null", "loss_gap"))
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
    if table.single_gold is None or len(table) < 2:  # pairs of questions are compared
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
    closed = (ClosedSet.of_masses if table.enumerated else ClosedSet.of_counts)(laid_out, gold)
    if (chances := chances_of(table, by_mass=False)) is not None:
        closed = closed.as_dependent_as(chances)
    kernel = skce(closed, null_draws=detail.null_draws, seed=detail.seed)
    by_class = classwise(closed, null_draws=detail.null_draws, seed=detail.seed)
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
        if not text:  # no one knows how gold would be written in this style
            continue
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
