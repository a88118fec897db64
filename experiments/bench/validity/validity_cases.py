"""Are the tests of this project valid? Models with a planted truth are simulated, and every test is counted.

Each case is a share of simulated studies (a size, or a power), with its binomial interval, against its bound. A case
fails only where the whole interval lies on the wrong side. No model is loaded.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
from scipy.stats import beta

from experiments.bench.validity.planted_runs import arms, graded, made, mechanism, unparsed_in_cot
from experiments.bench.validity.restatement_cases import restatement_cases
from experiments.verdict.calibration_claims import Law, mean_error, p_of_mean_error, thinking_harms
from experiments.verdict.measured_run import Measured
from experiments.verdict.mechanism_claims import mechanism_parts
from experiments.verdict.rules import Finding, decide
from experiments.verdict.training_claims import training_moves
from semcal.arrays import FloatArray
from semcal.calibration.inference.equivalence import p_of_error
from semcal.calibration.inference.paired import STATISTICS, contrast, leaves
from semcal.calibration.measures.smece import smece
from semcal.calibration.nulls.null import null_of
from semcal.calibration.nulls.twins import chances_of, exact_chances
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import class_masses, left_out_by_mass

QUESTIONS, CLASSES, DRAWS = 400, 20, 99
LEVEL, SIZE_LIMIT, POWER_LIMIT = 0.05, 0.07, 0.8
ACCUSED_LIMIT = 0.01  # of faithful servers
WORDINGS = (1, 3, 10, 0)  # per class; 0: no two answers are alike


@dataclass(frozen=True)
class Validity:
    """How often something happened in simulated studies.

    Attributes:
        case: what was planted and tested.
        value: share of the studies.
        low, high: 95 % interval of that share (Clopper & Pearson 1934).
        limit: its bound, from above for a size and from below for a power.
        holds: whether the interval reaches the right side of the bound.
        studies: how many were simulated.
    """

    case: str
    value: float
    low: float
    high: float
    limit: float
    holds: bool
    studies: int

    @property
    def line(self) -> str:
        """The case in one line, while others are still running."""
        bound = f"limit {self.limit:g}{'' if self.holds else ', MISSED'}"
        return f"{self.case}: {self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {bound}"

    def to_dict(self) -> dict[str, str | float | bool | int]:
        """The fields in order."""
        return asdict(self)


@dataclass(frozen=True)
class Planted:
    """A model whose truth is known.

    Attributes:
        alpha: of the Dirichlet distribution of its class distributions over CLASSES classes.
        m: samples per question.
        wordings: per class, of random probabilities; 0: as many as there are samples.
        group: questions in a row that share one class distribution and one gold answer.
        shift: added to the chance that the most probable class is right; below 0 the model is overconfident.
    """

    alpha: float
    m: int
    wordings: int
    group: int = 1
    shift: float = 0.0

    def table(self, rng: np.random.Generator, n: int = QUESTIONS) -> tuple[ClassTable, float]:
        """Samples of n questions as a class table, and the planted error: how much more often the top classes of the
        samples are right than they are answered, on average."""
        groups = np.arange(n) // self.group
        pi = rng.dirichlet(np.full(CLASSES, self.alpha), size=groups[-1] + 1)
        truth, gold = self._truth(pi), np.empty(len(pi), dtype=np.int64)
        for g, p in enumerate(truth):
            gold[g] = rng.choice(CLASSES, p=p)
        pi, truth, gold = pi[groups], truth[groups], gold[groups]
        counts, masses, left_out, excess = self._sampled(pi, gold, truth, rng)
        table = replace(ClassTable.of_arrays(counts, gold, groups=groups), masses=masses, left_out=left_out)
        found = replace(table, left_out=excess).by_mass_left_out
        assert found is not None
        return table, float(found.correct.mean())

    def _truth(self, pi: FloatArray) -> FloatArray:
        """Distribution of the gold class [n, K]: pi, but for the chance of its most probable class."""
        each, mode = np.arange(len(pi)), pi.argmax(axis=1)
        right = np.clip(pi[each, mode] + self.shift, 0, 1)
        others = pi.copy()
        others[each, mode] = 0.0
        truth = others / others.sum(axis=1, keepdims=True) * (1 - right)[:, None]
        truth[each, mode] = right
        return truth

    def _sampled(
        self, pi: FloatArray, gold: np.ndarray, truth: FloatArray, rng: np.random.Generator
    ) -> tuple[np.ndarray, FloatArray, FloatArray, FloatArray]:
        """Counts, masses and left-out figures of M samples of each question; the last with the chance of each class to
        be gold, minus that of being answered, in place of gold."""
        n, width = len(pi), max(self.wordings, 1)
        of_word = rng.dirichlet(np.ones(width), size=(n, CLASSES))
        word = (pi[:, :, None] * of_word).reshape(n, -1)  # [n, class x wording]
        drawn = rng.multinomial(self.m, word / word.sum(axis=1, keepdims=True))
        row, column = np.nonzero(drawn)
        times, logprob = drawn[row, column], np.log(word[row, column])
        if self.wordings == 0:
            row, column = np.repeat(row, times), np.repeat(column, times)
            times, logprob = np.ones(len(row), dtype=np.int64), np.full(len(row), -20.0)
        label = column // width
        right = np.zeros(pi.shape, dtype=bool)
        right[np.arange(n), gold] = True
        counts = np.bincount(row * CLASSES + label, times, pi.size).reshape(pi.shape).astype(np.int64)
        masses = class_masses(row, label, times, logprob, shape=(n, CLASSES))
        drawn = (row, label, times, logprob)
        return counts, masses, left_out_by_mass(*drawn, right), left_out_by_mass(*drawn, truth - pi)

    def __str__(self) -> str:
        wording = f"{self.wordings} wordings" if self.wordings else "all distinct"
        group = f", gold shared by {self.group}" if self.group > 1 else ""
        return f"Dirichlet {self.alpha:g}, {wording}, M = {self.m}{group}"


# ---- one simulated study: did it happen? -----------------------------------------------------------------------------


def rejected(planted: Planted, by_mass: bool, study: int) -> bool:
    """Whether a null at LEVEL rejects a calibrated model."""
    table, _ = planted.table(keyed_generator(study, "validity", str(planted)))
    found = table.by_mass_left_out if by_mass else table.by_count
    assert found is not None
    null = null_of(table, by_mass=by_mass, null_draws=DRAWS, seed=study)
    return null.p_value(smece(found.plug_in, found.correct)) <= LEVEL


def accepted(planted: Planted, study: int) -> bool:
    """Whether an equivalence test at LEVEL rules out an error that the model has."""
    table, error = planted.table(keyed_generator(study, "validity", str(planted), "off"))
    found, chances = table.by_mass_left_out, chances_of(table, by_mass=True)
    assert found is not None
    assert chances is not None
    uniform = chances.uniforms(DRAWS, keyed_generator(study, "validity", "equivalence"))
    return p_of_error(chances, found.correct, abs(error), uniform) <= LEVEL


def told_apart(one: Planted, other: Planted, study: int) -> bool:
    """Whether the excess of the second of two calibrated models, on the same questions, is called larger at LEVEL."""
    runs = []
    for planted in (one, other):
        table, _ = planted.table(keyed_generator(study, "validity", "pair"))  # the same questions and gold
        found = table.by_mass_left_out
        assert found is not None
        null = null_of(table, by_mass=True, null_draws=DRAWS, seed=study)
        error = leaves(STATISTICS["smece"], found.plug_in, found.correct, stratum="", group=None, seed=study)
        runs.append(error.minus(null.mean))
    return contrast([(1.0, runs[1]), (-1.0, runs[0])]).p_above(0.0) <= LEVEL


LAW = Law(null_draws=DRAWS)


def grid(off: float, study: int, n: int = 2000) -> list[Measured]:
    """Twelve cells of four base models, all overconfident by `off`."""
    places = itertools.product("abcd", ("concise",), ("facts", "routes", "third"))
    return [made(m, s, d, off=off, n=n, seed=study, stage="base") for m, s, d in places]


def judged(hypothesis: str, off: float, decision: str, study: int) -> bool:
    """Whether the rules reach this decision on H1 of a `grid`, or on H3 of a base model that does not answer in cot."""
    if hypothesis == "H1":
        finding = Finding("H1", (mean_error(grid(off, study), LAW),))  # without the rows beside it
    else:
        finding = thinking_harms([made(n=400, seed=study), unparsed_in_cot(study, share=off)], LAW)
    return decide([finding], LAW.alpha)[0].decision == decision


def blamed(study: int, n: int = 300, off: float = 0.03) -> bool:
    """Whether cot is said to harm where it has the same error as a short style and is only surer."""
    rng = keyed_generator(study, "validity", "surer")
    runs = []
    for style, (low, high) in (("concise", (0.3, 0.7)), ("cot", (0.9, 0.95))):
        truth = rng.uniform(low, high, n)
        correct, confidence = (rng.random(n) < truth).astype(float), truth + off
        same = {"confidence": confidence, "correct": correct, "chances": exact_chances(confidence)}
        runs.append(replace(made(style=style, n=n, seed=study), **same))
    return thinking_harms(runs, LAW).parts[0].p <= LAW.alpha


def called_smaller(off: float, study: int) -> bool:
    """Whether the mean error of a `grid` of one model, which is delta, is called smaller."""
    runs = [r for r in grid(off, study, n=300) if r.model == "a"]
    return p_of_mean_error(runs, LAW) <= LAW.alpha


def mechanism_judged(relation: str, decision: str, study: int) -> bool:
    """Whether the rules reach this decision on H4, the error of cells being a function of their KL gap."""
    runs = mechanism(study, truth=RELATIONS[relation])
    finding = Finding("H4", mechanism_parts(runs, "lora", LAW))  # without the rows beside it
    return decide([finding], LAW.alpha)[0].decision == decision


def graded_judged(per_nat: float, decision: str, study: int) -> bool:
    """Whether the rules reach this decision on H4 at the size of the study `difficulty`."""
    finding = Finding("H4", mechanism_parts(graded(study, per_nat), "generative", LAW))
    return decide([finding], LAW.alpha)[0].decision == decision


def arms_judged(raised: float, decision: str, study: int) -> bool:
    """Whether the rules reach this decision on H5, the error being raised by so much where the gap is."""
    return decide([training_moves(arms(raised, study), LAW)], LAW.alpha)[0].decision == decision


RELATIONS: dict[str, Callable[[float], float]] = {
    "error grows with the gap": lambda gap: gap / 4,
    "no error anywhere": lambda gap: 0.0,  # noqa: ARG005
    "error where the gap is small": lambda gap: 0.15 if gap < 0.1 else 0.0,
    "some error where the gap is small": lambda gap: 0.08 if gap < 0.1 else gap / 4,
}


# ---- the cases -------------------------------------------------------------------------------------------------------


def sizes() -> Iterator[tuple[str, Callable[[int], bool]]]:
    """What may happen in at most SIZE_LIMIT of the studies: of nulls."""
    for alpha in (0.3, 1.0):
        for m in (5, 20, 50):
            for wordings in WORDINGS:
                planted = Planted(alpha, m, wordings)
                yield f"null by mass: {planted}", partial(rejected, planted, True)
    for group in (3, 10):
        for by_mass in (False, True):
            planted = Planted(1.0, 20, 3, group=group)
            yield f"null by {'mass' if by_mass else 'count'}: {planted}", partial(rejected, planted, by_mass)


def slow_sizes() -> Iterator[tuple[str, Callable[[int], bool]]]:
    """The same of equivalence and of pairs."""
    for shift in (-0.05, 0.05):
        for m in (5, 20, 50):
            for wordings in (1, 10, 0):
                planted = Planted(0.3, m, wordings, shift=shift)
                yield f"equivalence at the true error, shift {shift:+g}: {planted}", partial(accepted, planted)
    for wordings in (10, 0):
        one, other = Planted(1.0, 50, 1), Planted(1.0, 50, wordings)
        yield f"a pair that differs in wordings alone: {one} and {other}", partial(told_apart, one, other)


def rules(studies: int) -> Iterator[tuple[str, Callable[[int], bool], float, bool, int]]:
    """Case, what is counted, its bound, whether that is an upper one, and how many studies: of the verdict's rules."""
    some = max(1, studies // 10)
    for off in (0.0, 0.01):
        yield f"H1 fails: 12 cells off by {off:g}", partial(judged, "H1", off, "fails"), SIZE_LIMIT, True, some
    for off in (-0.05, 0.05):
        yield f"H1, mean error {off:+g} called smaller", partial(called_smaller, off), SIZE_LIMIT, True, studies
    yield "H1 holds: 12 calibrated cells", partial(judged, "H1", 0.0, "holds"), POWER_LIMIT, False, some
    yield "H1 fails: 12 cells off by 0.1", partial(judged, "H1", 0.1, "fails"), POWER_LIMIT, False, some
    yield "H3 shown: one error in both styles, cot surer", blamed, SIZE_LIMIT, True, studies
    yield "H3 holds: 20 % unparsed in cot, else calibrated", partial(judged, "H3", 0.2, "holds"), 0.0, True, some
    yield "H4 holds: no error anywhere", partial(mechanism_judged, *_NONE, "holds"), SIZE_LIMIT, True, 3 * some
    yield "H4 fails: no error anywhere", partial(mechanism_judged, *_NONE, "fails"), SIZE_LIMIT, True, some
    yield "H4 holds: error grows with the gap", partial(mechanism_judged, *_GROWS, "holds"), POWER_LIMIT, False, some
    yield (
        "H4 holds: some error where the gap is small",
        partial(mechanism_judged, *_SOME, "holds"),
        SIZE_LIMIT,
        True,
        some,
    )
    at_size = "99 cells, n = 300, error"
    yield f"H4 holds: {at_size} of places alone", partial(graded_judged, 0.0, "holds"), SIZE_LIMIT, True, some
    yield f"H4 fails: {at_size} of places alone", partial(graded_judged, 0.0, "fails"), SIZE_LIMIT, True, some
    yield f"H4 holds: {at_size} + 0.1 a nat", partial(graded_judged, 0.1, "holds"), POWER_LIMIT, False, some
    contradicted = partial(mechanism_judged, *_SMALL, "fails")
    yield "H4 fails: error where the gap is small", contradicted, POWER_LIMIT, False, some
    yield "H5 holds: gaps raised, errors not", partial(arms_judged, 0.0, "holds"), SIZE_LIMIT, True, some
    yield "H5 fails: gaps raised, errors not", partial(arms_judged, 0.0, "fails"), POWER_LIMIT, False, some
    yield "H5 holds: errors raised by 0.1 with the gaps", partial(arms_judged, 0.1, "holds"), POWER_LIMIT, False, some
    yield "H5 fails: errors raised by 0.1 with the gaps", partial(arms_judged, 0.1, "fails"), SIZE_LIMIT, True, some


_GROWS, _NONE, _SMALL, _SOME = ((relation,) for relation in RELATIONS)


def validity_cases(device: str = "auto", studies: int = 300, workers: int = 2) -> Iterator[Validity]:  # noqa: ARG001 - the signature of all benches
    """Every case in turn, `studies` simulated studies each; half of them for equivalence and pairs, and a tenth
    (three tenths of one size of H4) where the rules of a verdict are simulated."""
    cases = [(case, happens, SIZE_LIMIT, True, studies) for case, happens in sizes()]
    cases += [(case, happens, SIZE_LIMIT, True, studies // 2) for case, happens in slow_sizes()]
    for case, refused, wrongly in restatement_cases():
        cases.append((case, refused, ACCUSED_LIMIT if wrongly else POWER_LIMIT, wrongly, studies))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for case, happens, limit, at_most, trials in (*cases, *rules(studies)):
            hits = sum(pool.map(happens, range(trials), chunksize=max(1, trials // (4 * workers))))
            low, high = clopper_pearson(hits, trials)
            holds = low <= limit if at_most else high >= limit
            yield Validity(case, hits / trials, low, high, limit, holds, trials)


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share, from the number of hits."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high
