"""From class counts, masses or log-probabilities to one confidence and one correctness per question.

Knows counts and which classes are gold; knows neither texts nor how classes were formed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semcal.arrays import FloatArray, IntArray, as_integers, as_numbers


@dataclass(frozen=True)
class Confidences:
    """One confidence and one correctness per question.

    Attributes:
        plug_in: `[n]` share of the most frequent class among the M samples. It overstates max_k pi(k) at finite M.
        correct: `[n]` 1 if that class is the gold class; where several classes tie for first place, 1 / their number
            if gold is among them, the expectation over a random tie-break.
        tied: `[n]` whether several classes tie for first place.
    """

    plug_in: FloatArray
    correct: FloatArray
    tied: NDArray[np.bool_]


def checked_counts(counts: ArrayLike) -> tuple[IntArray, int]:
    """Counts `[n, K]` as int64, and M; ValueError unless whole, not negative and with rows that all sum to M."""
    whole = as_integers("counts", counts, 0, "not a count")
    if whole.ndim != 2 or 0 in whole.shape:
        raise ValueError(f"counts must be [questions, classes] and not empty, got shape {whole.shape}")
    totals = whole.sum(axis=1)
    m = int(totals[0])
    if m < 1 or (totals != m).any():
        odd = int(np.argmax(totals != m)) if m else 0
        raise ValueError(
            f"every question needs the same number of samples: counts[0] sums to {m}, counts[{odd}] to {totals[odd]}"
        )
    return whole, m


def checked_masses(masses: ArrayLike) -> FloatArray:
    """Masses `[n, K]` as float64; ValueError where one is below 0 or a row sums to more than 1."""
    array = as_numbers("masses", masses)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"masses must be [questions, classes] and not empty, got shape {array.shape}")
    if not (array >= 0).all():  # so that NaN is refused
        row, k = np.argwhere(~(array >= 0))[0]
        raise ValueError(f"masses[{row}, {k}] is {array[row, k]}, which is not a probability")
    above = array.sum(axis=1) > 1 + 1e-6
    if above.any():
        row = int(np.argmax(above))
        raise ValueError(f"masses[{row}] sums to {array[row].sum():.6g}, which is more than 1")
    return array


def checked_index(name: str, index: ArrayLike | None, counts: IntArray | FloatArray) -> IntArray:
    """Class indices `[n]` in [-1, K), -1 (None: all) meaning "no such class in this row"; ValueError otherwise."""
    n, classes = counts.shape
    expected = f"neither -1 nor one of the {classes} classes"
    whole = np.full(n, -1) if index is None else as_integers(name, index, -1, expected)
    if whole.shape != (n,):
        raise ValueError(f"{name} has shape {whole.shape} but counts has shape {counts.shape}")
    if (whole >= classes).any():
        row = int(np.argmax(whole >= classes))
        raise ValueError(f"{name}[{row}] is {whole[row]}, which is {expected}")
    return whole


def share_of(chosen: NDArray[np.bool_], gold: IntArray) -> FloatArray:
    """Chance that one class drawn evenly from the `chosen [..., K]` is `gold [...]`; 0 where gold is -1."""
    hit = np.take_along_axis(chosen, np.maximum(gold, 0)[..., None], axis=-1)[..., 0] & (gold >= 0)
    return hit / chosen.sum(axis=-1)


def share_within(chosen: NDArray[np.bool_], gold: NDArray[np.bool_] | FloatArray) -> FloatArray:
    """Chance that one class drawn evenly from the `chosen [..., K]` is one of the `gold [..., K]`; where `gold` holds
    numbers, the mean number of the class drawn."""
    return (chosen * gold).sum(axis=-1) / chosen.sum(axis=-1)


def confidences(counts: ArrayLike, gold: ArrayLike, unparsed: ArrayLike | None = None) -> Confidences:
    """Plug-in confidence and correctness of every question.

    Args:
        counts: `[n, K]` samples per class; every row sums to M, and rows with fewer classes are padded by 0.
        gold: `[n]` index of the gold class in its row, -1 where it was never sampled; or, where several classes may be
            correct, `[n, K]` bool.
        unparsed: `[n]` index of the class of answers that could not be parsed, -1 where there is none. It may be the
            mode (the model is then confident of nothing usable), but it is never correct.

    Raises:
        ValueError: wrong shapes, rows with different totals, indices outside the row.
    """
    counts, _ = checked_counts(counts)
    gold = checked_gold(counts, gold, unparsed)
    top = counts.max(axis=1)
    first = counts == top[:, None]
    return Confidences(top / counts.sum(axis=1), share_within(first, gold), first.sum(axis=1) > 1)


def confidences_of_masses(masses: ArrayLike, gold: ArrayLike, unparsed: ArrayLike | None = None) -> Confidences:
    """Confidence and correctness from exact class masses, as exact enumeration gives them.

    Args:
        masses: `[n, K]` probability of each class, at least 0; rows sum to at most 1; the rest is unexplored.
        gold, unparsed: as in `confidences`.

    Raises:
        ValueError: wrong shapes, a mass below 0, a row above 1.
    """
    array = checked_masses(masses)
    answerable = checked_gold(array, gold, unparsed)
    top = array.max(axis=1)
    first = (array == top[:, None]) & (top > 0)[:, None]
    correct = np.where(top > 0, share_within(first | (top == 0)[:, None], answerable), 0.0)
    return Confidences(np.minimum(top, 1.0), correct, first.sum(axis=1) > 1)


def checked_gold(counts: IntArray | FloatArray, gold: ArrayLike, unparsed: ArrayLike | None) -> NDArray[np.bool_]:
    """Which classes `[n, K]` are correct, the unparsed one never; arguments and errors as in `confidences`."""
    array = np.asarray(gold)
    if array.dtype == bool and array.ndim == 2:
        if array.shape != counts.shape:
            raise ValueError(f"gold has shape {array.shape} but counts has shape {counts.shape}")
        mask = array.copy()
    else:
        mask = checked_index("gold", gold, counts)[:, None] == np.arange(counts.shape[1])
    column = checked_index("unparsed", unparsed, counts)
    mask[np.arange(len(mask))[column >= 0], column[column >= 0]] = False
    return mask


EXCESS_MASS = 1.01  # log-probabilities in bf16 may sum to a little above 1, not by more


def class_masses(
    question: ArrayLike, label: ArrayLike, count: ArrayLike, logprob: ArrayLike, *, shape: tuple[int, int]
) -> FloatArray:
    """Estimated class distributions from the distinct answers that were sampled and their exact probabilities.

    The mass of the answers that were seen is known exactly, and so is what is left, U = 1 - sum of exp(logprob).
    Classes share U in proportion to the answers that were seen once: those represent what was not seen, as in the
    estimator of Good (1953) and Turing,

        pi(k) = sum over seen answers a of k of exp(logprob_a) + U N1(k) / N1,

    with N1(k) the number of answers of k that were drawn once. Where none was drawn once, U is shared in proportion to
    the seen mass. For answers of few wordings that is nearly exact; where no two samples agree it reduces to
    counting.

    Args:
        question: `[answer]` row of each distinct answer.
        label: `[answer]` column of its class.
        count: `[answer]` how often it was drawn.
        logprob: `[answer]` of the whole answer under the distribution sampled from, in nats.
        shape: (questions, classes).

    Returns:
        `[n, K]`; rows sum to 1.

    Raises:
        ValueError: arrays of different lengths; a log-probability that is NaN; a question without answers or whose
            answers have a total mass above 1 (then these are not log-probabilities of distinct answers).
    """
    question, label, count = (np.asarray(a, dtype=np.int64) for a in (question, label, count))
    logprob = np.asarray(logprob, dtype=np.float64)
    if not question.shape == label.shape == count.shape == logprob.shape or question.ndim != 1:
        shapes = ", ".join(str(a.shape) for a in (question, label, count, logprob))
        raise ValueError(f"question, label, count and logprob must have one length, got shapes {shapes}")
    if np.isnan(logprob).any():
        raise ValueError(f"logprob[{int(np.argmax(np.isnan(logprob)))}] is NaN; without log-probabilities, use counts")
    _, seen, once = _by_class(question, label, count, logprob, shape)
    total = seen.sum(axis=1, keepdims=True)  # [n, 1]
    if not ((total > 0) & (total <= EXCESS_MASS)).all():
        row = int(np.argmin(((total > 0) & (total <= EXCESS_MASS))[:, 0]))
        raise ValueError(
            f"the answers of question {row} have a total mass of {total[row, 0]:.4g}; expected a value in (0, 1]"
        )
    return _shared_out(seen, once)


def _by_class(
    question: IntArray, label: IntArray, count: IntArray, logprob: FloatArray, shape: tuple[int, int]
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Samples, mass of the distinct answers seen, and number of answers seen once: `[n, K]` each."""
    slot = question * shape[1] + label

    def summed(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(slot, values, shape[0] * shape[1]), dtype=np.float64).reshape(shape)

    counts = summed(count.astype(np.float64)).astype(np.int64)
    return counts, summed(np.exp(logprob)), summed((count == 1).astype(np.float64))


def _shared_out(seen: FloatArray, once: FloatArray) -> FloatArray:
    """Class masses `[n, K]` from the mass seen and the answers seen once, as `class_masses` says."""
    total, singles = seen.sum(axis=1, keepdims=True), once.sum(axis=1, keepdims=True)
    share = np.where(singles > 0, once / np.maximum(singles, 1), seen / np.maximum(total, 1e-300))
    masses = seen + np.maximum(1 - total, 0) * share
    return masses / masses.sum(axis=1, keepdims=True)


CHUNK_ELEMENTS = 2**22  # masses held at once, 32 MB


def left_out_by_mass(
    question: ArrayLike,
    label: ArrayLike,
    count: ArrayLike,
    logprob: ArrayLike,
    gold: NDArray[np.bool_] | FloatArray,
) -> FloatArray:
    """What confidence by mass is, and whether it is borne out, when one of a question's M samples is left out.

    The sample left out is one more draw from the model's own distribution, as the gold answer of a calibrated model is.
    So it shows how often the top class of the other M - 1 is right if the model is calibrated, whatever was not seen.

    Args:
        question, label, count, logprob: `[answer]` as `class_masses` takes them; every row sums to M >= 2.
        gold: `[n, K]` which classes are correct, or the chance of each.

    Returns:
        `[n, K, 4]`, means over the samples of each class: confidence by mass of the other M - 1; the chance that the
        class of the sample left out is on top of them; the chance that a correct class is (a tie counts as a fraction);
        that fraction, 1 over the number of classes on top. NaN where a class was not sampled.
    """
    question, label, count = (np.asarray(a, dtype=np.int64) for a in (question, label, count))
    logprob = np.asarray(logprob, dtype=np.float64)
    counts, seen, once = _by_class(question, label, count, logprob, gold.shape)
    sums = np.zeros((*gold.shape, 4))
    step = max(1, CHUNK_ELEMENTS // gold.shape[1])
    for start in range(0, len(question), step):
        at = slice(start, start + step)
        row, column, times = question[at], label[at], count[at]
        each = np.arange(len(row))
        rest, singles = seen[row], once[row]  # [answer, K]
        rest[each, column] = np.maximum(rest[each, column] - np.where(times == 1, np.exp(logprob[at]), 0.0), 0.0)
        singles[each, column] += np.select([times == 1, times == 2], [-1.0, 1.0])
        masses = _shared_out(rest, singles)
        top = masses.max(axis=1)
        first = masses >= top[:, None] * (1 - 1e-12)
        part = 1 / first.sum(axis=1)
        found = np.stack(
            [np.minimum(top, 1.0), first[each, column] * part, share_within(first, gold[row]), part], axis=1
        )
        np.add.at(sums, (row, column), times[:, None] * found)
    return np.where(counts[..., None] > 0, sums / np.maximum(counts, 1)[..., None], np.nan)
