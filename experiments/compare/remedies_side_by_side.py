"""Remedies for a run's calibration side by side: maps of its confidence, its probes' confidence, and its model tilted.

Every figure is of questions that the remedy has not seen the gold of: maps and probes are fitted on other groups, and a
tilted model was trained on the other half. Knows class tables and run folders; runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.probe.confidence_of_probes import costs
from experiments.report.summary_table import headline, interval, number
from experiments.terminal.fitted_table import FittedTable
from semcal.calibration.estimators.recalibration import remedies
from semcal.calibration.inference.paired import STATISTICS, paired_difference
from semcal.calibration.summary import calibrate
from semcal.errors import UserError
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable

MAPS = ("temperature", "beta", "tilt")
FIGURES = ("smece", "smece_low", "smece_high", "excess", "signed_gap", "accuracy", "auroc")
AS_SAMPLED, TILTED = "as sampled", "tilted model"


@dataclass(frozen=True)
class Remedied:
    """One way to be sure.

    Attributes:
        remedy: its name.
        smece, smece_low, smece_high, excess, signed_gap, accuracy, auroc: as in `Calibration`, of the answer that the
            confidence is about.
        change, change_low, change_high: smECE minus that as sampled, on the same questions.
        tokens: read and generated for one question, without sharing between answers; NaN where unknown.
    """

    remedy: str
    smece: float
    smece_low: float
    smece_high: float
    excess: float
    signed_gap: float
    accuracy: float
    auroc: float
    change: float
    change_low: float
    change_high: float
    tokens: float


def side_by_side(cell: Cell, run: Run, before: ClassTable, after: ClassTable) -> list[Remedied]:
    """The run as it is, its confidence mapped, its probes' confidence if there is one, and the tilted model.

    Args:
        before, after: the same questions in the same order.

    Raises:
        UserError: all answers are right, or all wrong: there is nothing to recalibrate.
    """
    resampling = cell.calibration.resampling(cell.seed)
    sampling, probing = costs(run)
    asked = sampling.prompt_tokens + sampling.generated_tokens
    own = before.by_count
    rows = [_of_table(AS_SAMPLED, cell, before, before, asked)]
    try:
        fixed = remedies(own.plug_in, own.correct, m=before.m, group=before.groups, resampling=resampling)
    except ValueError as error:
        raise UserError(f"{run.folder}: {error}") from error
    mapped = [asdict(one) | {"remedy": one.method, "accuracy": rows[0].accuracy} for one in fixed if one.method in MAPS]
    probed = [row | {"remedy": row["source"]} for row in run.probe_confidence().to_dict("records")]
    for found, tokens in [
        *((row, asked) for row in mapped),
        *((row, probing.prompt_tokens) for row in probed if row["source"] != "samples"),
    ]:
        figures: dict[str, Any] = {name: float(found[name]) for name in FIGURES}
        figures |= {"change": figures["smece"] - rows[0].smece, "change_low": nan, "change_high": nan}
        rows.append(Remedied(remedy=found["remedy"], tokens=tokens, **figures))
    return [*rows, _of_table(TILTED, cell, before, after, asked)]


def _of_table(remedy: str, cell: Cell, before: ClassTable, table: ClassTable, tokens: float) -> Remedied:
    resampling = cell.calibration.resampling(cell.seed)
    found = calibrate(table, resampling=resampling)
    change = (0.0, 0.0, 0.0)
    if table is not before:
        one, other = before.by_count, table.by_count
        moved = paired_difference(
            STATISTICS["smece"],
            *((one.plug_in, one.correct), (other.plug_in, other.correct)),
            group=before.groups,
            resampling=resampling,
        )
        change = (moved.estimate, moved.low, moved.high)
    figures = (found.smece, found.smece_low, found.smece_high, found.excess, found.signed_gap)
    return Remedied(remedy, *figures, found.accuracy, found.auroc, *change, tokens)


def as_frame(rows: Sequence[Remedied]) -> pd.DataFrame:
    """One row per remedy."""
    return pd.DataFrame([asdict(row) for row in rows])


def remedies_table(rows: Sequence[Remedied]) -> FittedTable:
    """One row per remedy."""
    titles = ("remedy", "smECE", "change", "excess", "signed gap", "accuracy", "AUROC", "tokens per question")
    table = FittedTable(titles)
    for r in rows:
        change = "" if r.remedy == AS_SAMPLED else interval(r.change, r.change_low, r.change_high, "+")
        figures = (number(r.excess, "+"), number(r.signed_gap, "+"), number(r.accuracy), number(r.auroc, digits=2))
        tokens = "unknown" if np.isnan(r.tokens) else f"{r.tokens:,.0f}"
        table.add_row(r.remedy, interval(r.smece, r.smece_low, r.smece_high), change, *figures, tokens)
    return table


def explanation(run: Run, questions: Sequence[int], tokens: Sequence[int]) -> str:
    """What the numbers are, and what the theory expects of them, printed below the table.

    Args:
        questions, tokens: [half] what the adapters learnt from.
    """
    said = (
        "every figure is of questions whose gold the remedy has not seen · temperature, beta, tilt: maps of the "
        "samples' confidence, which leave the answers as they are · tilted model: asked again with a rank-8 LoRA "
        f"trained by cross-entropy on the gold of the other half ({', '.join(f'{n} questions' for n in questions)}; "
        f"{', '.join(f'{n:,} tokens' for n in tokens)} read in training) · change: smECE minus that as sampled, with "
        "its interval over the same questions · tokens: read and generated for one question, nothing shared"
    )
    figures = headline(run)
    gap = figures["kl_lora_gap"] if figures["kl_lora_gap"] is not None else figures["kl_gap"]
    if gap is not None:
        said += (
            f" · the theory expects a proper loss to mend calibration where the KL gap is small; here a probe misses "
            f"{gap:.2f} nats"
        )
    return said
