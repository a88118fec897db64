"""Calibration measures against loops over `relplot` and scikit-learn, which are what a user would otherwise write.

Needs `relplot`, which the extra `dev` installs. Everything runs on the CPU.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from experiments.bench.timing import Case, side_by_side
from semcal.arrays import FloatArray, IntArray
from semcal.calibration.measures.smece import smece, smece_batch
from semcal.calibration.nulls.null import simulated_null
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import Calibration, calibrate
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences

QUESTIONS, M, CLASSES = 1000, 50, 20
REPLICATES = 1000  # resamples of the bootstrap, draws of the null
THEIRS_RESAMPLES, THEIRS_DRAWS, THEIRS_BOTH = 50, 20, 10  # timed and scaled; each repeat takes the next ones
SIZES = (10**3, 10**4, 10**5, 10**6)


def calibration_cases(device: str = "auto") -> Iterator[Case]:  # noqa: ARG001 - the signature of all benches
    """Cases `smece-bootstrap`, `null`, `linear/1000` ... `linear/1000000` and `calibrate`.

    Facts: the difference between the two, asserted to be small; our CPU seconds, which a busy machine disturbs less
    than wall-clock time; our peak memory; microseconds per question and replicate.
    """
    yield bootstrap_case()
    yield null_case()
    for n in SIZES:
        yield linear_case(n)
    yield calibrate_case()


def bootstrap_case(n: int = QUESTIONS, resamples: int = REPLICATES, timed: int = THEIRS_RESAMPLES) -> Case:
    """smECE of bootstrap resamples: one call against a loop over the same resamples."""
    confidence, correct = shares(n)
    drawn = keyed_generator(0, "bench", "bootstrap").integers(n, size=(resamples, n))
    weight = np.stack([np.bincount(row, minlength=n) for row in drawn])
    turns = cycle(drawn)

    def ours() -> FloatArray:
        return smece_batch(confidence, correct, weight=weight).values

    def theirs() -> list[float]:
        return [reference(confidence[row], correct[row]) for row in islice(turns, timed)]

    apart = float(np.abs(ours()[:timed] - theirs()).max())
    assert apart < 1e-3, f"smece-bootstrap: smECE of one resample differs by {apart:.2g}"
    return _case("smece-bootstrap", ours, theirs, questions=n, replicates=resamples, timed=timed, apart=apart)


def null_case(n: int = QUESTIONS, draws: int = REPLICATES, timed: int = THEIRS_DRAWS) -> Case:
    """The simulated null of flat Dirichlet classes; both draw at random, so their means are compared."""
    counts, _ = untied(n)
    rng = keyed_generator(0, "bench", "null")

    def ours() -> FloatArray:
        return simulated_null(counts, null_draws=draws, seed=0).values

    def theirs() -> list[float]:
        return [null_draw(counts, rng) for _ in range(timed)]

    found, expected = ours(), np.array([theirs() for _ in range(5)]).ravel()
    apart = abs(float(found.mean() - expected.mean()))
    error = float(np.hypot(found.std() / len(found) ** 0.5, expected.std() / len(expected) ** 0.5))
    assert apart < 4 * error, f"null: the means differ by {apart:.2g}, which is {apart / error:.1f} standard errors"
    return _case("null", ours, theirs, questions=n, replicates=draws, timed=timed, apart=apart)


def linear_case(n: int) -> Case:
    """One smECE of n questions."""
    confidence, correct = shares(n)

    def ours() -> float:
        return smece(confidence, correct)

    def theirs() -> float:
        return reference(confidence, correct)

    apart = abs(ours() - theirs())
    assert apart < 1e-3, f"linear/{n}: smECE differs by {apart:.2g}"
    return _case(f"linear/{n}", ours, theirs, questions=n, replicates=1, timed=1, apart=apart)


def calibrate_case(n: int = QUESTIONS, replicates: int = REPLICATES, timed: int = THEIRS_BOTH) -> Case:
    """The whole record against the same intervals and null in plain loops, without split half and bins."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    counts, gold = untied(n)
    found = confidences(counts, gold)
    rng = keyed_generator(0, "bench", "calibrate")

    def ours() -> Calibration:
        return calibrate(ClassTable.of_arrays(counts, gold), resampling=Resampling(replicates, replicates))

    def measured(rows: IntArray) -> dict[str, float]:
        confidence, correct = found.plug_in[rows], found.correct[rows]
        return {
            "accuracy": float(correct.mean()),
            "confidence": float(confidence.mean()),
            "signed_gap": float(confidence.mean() - correct.mean()),
            "smece": reference(confidence, correct),
            "brier": float(brier_score_loss(correct, confidence, pos_label=1)),
            "auroc": float(roc_auc_score(correct, confidence)),
        }

    def theirs() -> None:
        for _ in range(timed):
            measured(rng.integers(n, size=n))
            null_draw(counts, rng)

    record = calibrate(ClassTable.of_arrays(counts, gold), resampling=Resampling(2, 2))
    apart = max(abs(value - getattr(record, name)) for name, value in measured(np.arange(n)).items())
    assert apart < 1e-3, f"calibrate: a measure differs by {apart:.2g}"
    return _case("calibrate", ours, theirs, questions=n, replicates=replicates, timed=timed, apart=apart)


def shares(n: int) -> tuple[FloatArray, FloatArray]:
    """Confidences k/M `[n]` and the correctness `[n]` of a somewhat overconfident model."""
    rng = keyed_generator(0, "bench", "shares", str(n))
    confidence = rng.integers(0, M + 1, n) / M
    return confidence, (rng.random(n) < confidence**1.5).astype(np.float64)


def untied(n: int) -> tuple[IntArray, IntArray]:
    """Counts `[n, CLASSES]` and gold classes `[n]` of a calibrated model, with one most frequent class per question.

    Class distributions are uniform on the simplex; scikit-learn's metrics accept no fractional correctness.
    """
    rng = keyed_generator(0, "bench", "classes")
    pi = rng.dirichlet(np.ones(CLASSES), 3 * n)
    counts, gold = rng.multinomial(M, pi), (pi.cumsum(axis=1) > rng.random((3 * n, 1))).argmax(axis=1)
    alone = ((counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1).nonzero()[0][:n]
    return counts[alone], gold[alone]


def reference(confidence: FloatArray, correct: FloatArray) -> float:
    """smECE by its authors' package."""
    import relplot

    return float(relplot.smECE(confidence, correct))  # pyright: ignore[reportArgumentType] - one value without a width


def null_draw(counts: IntArray, rng: np.random.Generator) -> float:
    """smECE of one simulated calibrated model, as one would write it."""
    pi_hat = counts / M
    fresh = rng.multinomial(M, pi_hat)
    gold = rng.multinomial(1, pi_hat).argmax(axis=1)
    first = fresh == fresh.max(axis=1, keepdims=True)
    correct = first[np.arange(len(gold)), gold] / first.sum(axis=1)
    return reference(fresh.max(axis=1) / M, correct)


def _case(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    questions: int,
    replicates: int,
    timed: int,
    apart: float,
) -> Case:
    case = side_by_side(name, ours, theirs, scale=replicates / timed)
    began = time.process_time()
    ours()
    cpu_seconds = time.process_time() - began
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    facts = {
        "questions": questions,
        "replicates": replicates,
        "theirs_replicates": timed,
        "apart": apart,
        "ours_cpu_s": cpu_seconds,
        "us_per_question": 1e6 * case.ours_s / (questions * replicates),
        "peak_mb": peak / 2**20,
    }
    return replace(case, facts=facts)
