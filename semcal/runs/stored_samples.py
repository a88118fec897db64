"""Whether the samples that a run reads back are whole: files are edited, copied and lost, and no figure shows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from semcal.arrays import FloatArray
from semcal.errors import UserError
from semcal.runs.partial_shard import FINISHES, SAMPLE_COLUMNS

_ABOVE_ONE = 1e-3  # nats by which rounding may lift a log-probability above 0


def check_samples(table: pd.DataFrame, questions: Sequence[str]) -> None:
    """Check the samples of a run against its questions.

    Args:
        table: One row per distinct answer, as `Run.samples` returns it.
        questions: Ids, in order.

    Raises:
        UserError: columns, questions or samples are missing or surplus, or values that no sampler gives.
    """
    if missing := [name for name in SAMPLE_COLUMNS if name not in table]:
        raise UserError(f"column {missing[0]!r} of the samples is missing")
    _check_values(table)
    counts = _numbers(table, "count")
    enumerated = bool(np.isnan(counts).all())
    order = list(dict.fromkeys(table["question_id"]))
    known = set(order)
    expected = [q for q in questions if q in known] if enumerated else list(questions)
    if order != expected:
        surplus = known - set(questions)
        lost = [q for q in questions if q not in known]
        named = [f"question {q!r} is not asked" for q in sorted(surplus)] + [f"question {q!r} has none" for q in lost]
        raise UserError(f"samples and questions.parquet differ: {(named or ['they are in another order'])[0]}")
    if not enumerated:
        place = {question: row for row, question in enumerate(order)}
        code = np.array([place[question] for question in table["question_id"]])
        sums = np.bincount(code, counts)  # [question]
        m = float(np.median(sums))
        if len(off := np.flatnonzero(sums != m)):
            raise UserError(f"question {order[off[0]]!r} has {sums[off[0]]:g} samples, others {m:g}")


def _check_values(table: pd.DataFrame) -> None:
    counts, logprobs = _numbers(table, "count"), _numbers(table, "logprob")
    sampled = not np.isnan(counts).all()  # enumerated answers have none
    wrong = {
        "text": ~table["text"].map(lambda text: isinstance(text, str)).to_numpy(dtype=bool),
        "finish": ~table["finish"].isin(FINISHES).to_numpy(),
        "count": ~((counts >= 1) & (counts % 1 == 0)) & sampled,
        "logprob": logprobs > _ABOVE_ONE,
    }
    for name, rows in wrong.items():
        if rows.any():
            row = table.iloc[int(np.argmax(rows))]
            raise UserError(f"{name} of an answer to {row['question_id']!r} is {row[name]}")


def _numbers(table: pd.DataFrame, name: str) -> FloatArray:
    return np.asarray(pd.to_numeric(table[name]), dtype=np.float64)
