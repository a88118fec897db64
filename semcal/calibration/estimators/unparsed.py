"""What the answers that could not be parsed might have been, and how far smECE depends on it.

Knows class tables; no texts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semcal.arrays import FloatArray
from semcal.calibration.measures.smece import smece_batch
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import share_within


@dataclass(frozen=True)
class Reading:
    """smECE and signed gap (confidence minus accuracy) under one reading of the unparsed answers."""

    smece: float
    signed_gap: float


@dataclass(frozen=True)
class UnparsedBounds:
    """smECE of a run, whatever its unparsed answers were.

    Attributes:
        share: of all samples that could not be parsed.
        readings: by what the unparsed answers of each question are taken for: "top class", the likeliest parsed answer;
            "each its own", answers that nothing agrees with; "gold", all right; "one wrong answer", as everywhere else.
        least, most: range of smECE over the readings.
        parsed_only: without the unparsed answers, the rest brought to 1; NaN if nothing could be parsed.
        left_out: questions without a parsed answer, which `parsed_only` leaves out.
    """

    share: float
    readings: dict[str, Reading]
    least: float
    most: float
    parsed_only: Reading
    left_out: int


def unparsed_bounds(table: ClassTable, *, by_mass: bool = False) -> UnparsedBounds:
    """smECE under four readings of the unparsed answers, and of the parsed ones alone.

    The four are extreme, but not all that there are: each question's unparsed answers could be read in another way.
    Where nothing is unparsed, all figures are equal.

    Args:
        table: the questions.
        by_mass: take class masses (from all samples), not shares of samples.

    Raises:
        ValueError: by mass, but the table has no masses.
    """
    if by_mass and table.masses is None:
        raise ValueError("this needs class masses, but the table has no log-probabilities")
    weight = table.masses if by_mass and table.masses is not None else table.shares
    rows, has = np.arange(len(table)), table.unparsed >= 0
    unread = np.where(has, weight[rows, table.unparsed], 0.0)
    parsed = weight.copy()
    parsed[rows[has], table.unparsed[has]] = 0.0
    alone = unread / np.maximum(_number(table, has), 1)
    readings = {
        "top class": _top_class(parsed, unread, table.gold),
        "each its own": _with_column(parsed, alone, table.gold, right=np.zeros(len(table), dtype=bool)),
        "gold": _gold(parsed, unread, table.gold),
        "one wrong answer": _with_column(parsed, unread, table.gold, right=np.zeros(len(table), dtype=bool)),
    }
    values = [reading.smece for reading in readings.values()]
    rest = parsed.sum(axis=1)
    kept = rest > 1e-12
    only = _read(parsed[kept] / rest[kept, None], table.gold[kept]) if kept.any() else Reading(np.nan, np.nan)
    return UnparsedBounds(table.unparsed_share, readings, min(values), max(values), only, int((~kept).sum()))


def _number(table: ClassTable, has: NDArray[np.bool_]) -> FloatArray:
    """[question] unparsed samples; where answers were enumerated, they count as one."""
    if table.counts is None:
        return has.astype(float)
    return np.where(has, table.counts[np.arange(len(table)), table.unparsed], 0).astype(float)


def _top_class(parsed: FloatArray, unread: FloatArray, gold: NDArray[np.bool_]) -> Reading:
    """With the likeliest parsed class; of several, one after the other would do, so the first. If there is none, they
    are one wrong answer."""
    moved = parsed.copy()
    some = parsed.max(axis=1) > 0
    rows = np.flatnonzero(some)
    moved[rows, parsed[rows].argmax(axis=1)] += unread[rows]
    wrong = np.zeros(len(parsed), dtype=bool)
    return _with_column(moved, np.where(some, 0.0, unread), gold, right=wrong)


def _gold(parsed: FloatArray, unread: FloatArray, gold: NDArray[np.bool_]) -> Reading:
    """With the likeliest correct class, or a correct class of their own where none was sampled."""
    moved, some = parsed.copy(), np.asarray(gold.any(axis=1))
    rows = np.flatnonzero(some)
    moved[rows, np.where(gold, parsed, -1.0)[rows].argmax(axis=1)] += unread[rows]
    return _with_column(moved, np.where(some, 0.0, unread), gold, right=np.logical_not(some))


def _with_column(weight: FloatArray, more: FloatArray, gold: NDArray[np.bool_], *, right: NDArray[np.bool_]) -> Reading:
    """With one more class of weight `more [n]`, which is correct where `right [n]` says so."""
    return _read(np.column_stack([weight, more]), np.column_stack([gold, right]))


def _read(weight: FloatArray, gold: NDArray[np.bool_]) -> Reading:
    top = weight.max(axis=1)
    first = weight >= top[:, None] * (1 - 1e-12)
    first &= weight > 0
    correct = np.where(top > 0, share_within(first | (top <= 0)[:, None], gold), 0.0)
    top = np.clip(top, 0.0, 1.0)
    return Reading(float(smece_batch(top, correct).values[0]), float(top.mean() - correct.mean()))
