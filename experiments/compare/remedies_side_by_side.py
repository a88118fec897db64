"""Remedies for a run's calibration side by side: maps of its confidence, its probes' confidence, and its model tilted.

Every figure is of questions that the remedy has not seen the gold of: maps and probes are fitted on other groups, and a
tilted model was trained on the other half. Knows class tables and run folders; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.run_folder import LOOKS
from experiments.config.study import Cell
from experiments.probe.confidence_of_probes import costs
from experiments.report.summary_table import headline, interval, number
from experiments.terminal.fitted_table import FittedTable
from experiments.train.gold_adapter import PARTS
from probes.probe_confidence import Cost
from semcal.arrays import FloatArray
from semcal.calibration.estimators.recalibration import Method, recalibrated
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.paired import STATISTICS, paired_difference, smallest_difference
from semcal.calibration.measures.scores import auroc
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable

MAPS: tuple[Method, ...] = ("temperature", "beta", "tilt")
MAP_FOLDS = 5  # maps are fitted on all but one
HALVES = 2  # of the questions, each asked of a model that learnt from the other (`semcal tilt`)
AS_SAMPLED, TILTED = "as sampled", "tilted model"
LEARNT_FROM = (
    f"the maps are fitted on {1 - 1 / MAP_FOLDS:.0%} of the questions, but the tilted model learns from at most "
    f"{(1 - 1 / PARTS) / HALVES:.0%} (one of the halves, less the {1 / PARTS:.0%} of it that it is validated on), "
    "so a part of what they differ by may be how much each has learnt from"
).replace("%", " %")


@dataclass(frozen=True)
class Way:
    """One way to be sure of an answer.

    Attributes:
        remedy: its name.
        confidence, correct: [question] in [0, 1].
        cost: of one question.
    """

    remedy: str
    confidence: FloatArray
    correct: FloatArray
    cost: Cost


@dataclass(frozen=True)
class Remedied:
    """How calibrated one way is.

    Attributes:
        remedy: its name.
        smece, smece_low, smece_high: SmoothECE with its centred bootstrap interval over groups.
        change, change_low, change_high: smECE minus that as sampled, on the same questions.
        reach: the change that would be found with power 0.8.
        less, less_low, less_high: smECE minus that of the tilted model, on the same questions.
        signed_gap, accuracy, auroc: of the answer that the confidence is about.
        passes: forward passes for one question: of its prompt, and of every token generated.
        tokens: read and generated for one question, without sharing between answers; NaN where unknown.
    """

    remedy: str
    smece: float
    smece_low: float
    smece_high: float
    change: float
    change_low: float
    change_high: float
    reach: float
    less: float
    less_low: float
    less_high: float
    signed_gap: float
    accuracy: float
    auroc: float
    passes: float
    tokens: float


def side_by_side(cell: Cell, run: Run, before: ClassTable, after: ClassTable) -> tuple[list[Remedied], list[str]]:
    """The run as it is, its confidence mapped, its probes' confidence if there is one, and the tilted model; and why a
    map is left out.

    Args:
        before, after: the same questions in the same order.
    """
    sampling, probing = costs(run)
    ways, left_out = [_sampled(AS_SAMPLED, before, sampling)], []
    for method in MAPS:
        try:
            ways.append(_mapped(cell, ways[0], method, before))
        except ValueError as error:
            left_out.append(f"{run.folder}: no {method} of the confidence: {error}")
    ways += [*_probed(run, before, probing), _sampled(TILTED, after, _tilted_cost(run))]
    return [_measured(cell, way, ways, before.groups) for way in ways], left_out


def _sampled(remedy: str, table: ClassTable, cost: Cost) -> Way:
    return Way(remedy, table.by_count.plug_in, table.by_count.correct, cost)


def _mapped(cell: Cell, sampled: Way, method: Method, table: ClassTable) -> Way:
    """The confidence of the samples, each mapped by what was fitted on other groups."""
    settings: dict[str, Any] = {"m": table.m, "group": table.groups, "folds": MAP_FOLDS, "seed": cell.seed}
    fixed = recalibrated(sampled.confidence, sampled.correct, method, **settings)
    return Way(method, fixed, sampled.correct, sampled.cost)


def _probed(run: Run, table: ClassTable, cost: Cost) -> Iterator[Way]:
    """What probes say of each question that were fitted on other groups."""
    found = run.probe_predictions()
    if found.empty:
        return
    found = found.set_index("question_id").loc[list(table.questions)]
    yield Way("class probe", found["confidence"].to_numpy(float), found["correct"].to_numpy(float), cost)
    if "confidence_in_mode" in found:
        yield Way("confidence probe", found["confidence_in_mode"].to_numpy(float), table.by_count.correct, cost)


def _tilted_cost(run: Run) -> Cost:
    """Mean over both halves, which have the same number of groups."""
    halves = [costs(Run(folder))[0] for folder in sorted((run.folder / LOOKS / "tilt").glob("half-*/run"))]
    if not halves:
        return Cost(nan, nan, nan, nan)
    return Cost(**{name: float(np.mean([vars(half)[name] for half in halves])) for name in vars(halves[0])})


def _measured(cell: Cell, way: Way, ways: Sequence[Way], group: np.ndarray) -> Remedied:
    resampling, smece = cell.calibration.resampling(cell.seed), STATISTICS["smece"]

    def moved_from(other: Way) -> tuple[float, float, float, float]:
        if other is way:
            return 0.0, 0.0, 0.0, nan
        pairs = (other.confidence, other.correct), (way.confidence, way.correct)
        found = paired_difference(smece, *pairs, group=group, resampling=resampling)
        return (
            found.estimate,
            found.low,
            found.high,
            smallest_difference(found.standard_error, alpha=1 - cell.calibration.level),
        )

    pair = [way.confidence, way.correct]
    error = bootstrap_interval(smece, pair, group=group, resampling=resampling, centred=True, bounds=(0.0, 1.0))
    return Remedied(
        way.remedy,
        *(error.estimate, error.low, error.high),
        *moved_from(ways[0]),
        *moved_from(ways[-1])[:3],
        float(np.mean(way.confidence - way.correct)),
        float(np.mean(way.correct)),
        float(auroc(way.confidence, way.correct)),
        1 + way.cost.generated_tokens,
        way.cost.prompt_tokens + way.cost.generated_tokens,
    )


def as_frame(rows: Sequence[Remedied]) -> pd.DataFrame:
    """One row per remedy."""
    return pd.DataFrame([asdict(row) for row in rows])


def remedies_table(rows: Sequence[Remedied]) -> FittedTable:
    """One row per remedy."""
    titles = ("remedy", "smECE", "change", "less tilted", "signed gap", "accuracy", "AUROC", "passes", "tokens")
    table = FittedTable(titles)
    for r in rows:
        change = "" if r.remedy == AS_SAMPLED else interval(r.change, r.change_low, r.change_high, "+")
        less = "" if r.remedy == TILTED else interval(r.less, r.less_low, r.less_high, "+")
        figures = (number(r.signed_gap, "+"), number(r.accuracy), number(r.auroc, digits=2))
        cost = ("unknown" if isnan(count) else f"{count:,.0f}" for count in (r.passes, r.tokens))
        table.add_row(r.remedy, interval(r.smece, r.smece_low, r.smece_high), change, less, *figures, *cost)
    return table


def explanation(run: Run, rows: Sequence[Remedied], questions: Sequence[int], tokens: Sequence[int]) -> str:
    """What the numbers are, and what the theory expects of them, printed below the table.

    Args:
        questions, tokens: [half] what the adapters learnt from.
    """
    said = (
        "every figure is of questions whose gold the remedy has not seen · temperature, beta, tilt: maps of the "
        "samples' confidence, which leave the answers as they are · tilted model: asked again with a rank-8 LoRA "
        f"trained by cross-entropy on the gold of the other half ({', '.join(f'{n} questions' for n in questions)}; "
        f"{', '.join(f'{n:,} tokens' for n in tokens)} read in training) · {LEARNT_FROM} · change, less tilted: smECE "
        "minus that as sampled, and minus that of the tilted model, with intervals over the same questions; a change "
        f"of the tilted model by {rows[-1].reach:.3f} would be found with power 0.8 · passes: of the prompt and of "
        "every token generated for one question · tokens: read and generated for one question, nothing shared"
    )
    figures = headline(run)
    gap = figures["kl_lora_gap"] if figures["kl_lora_gap"] is not None else figures["kl_gap"]
    if gap is not None:
        said += (
            f" · the theory expects a proper loss to mend calibration where the KL gap is small; here a probe misses "
            f"{gap:.2f} nats"
        )
    return said
