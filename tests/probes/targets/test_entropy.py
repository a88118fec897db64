"""Entropies from M samples: bounds that hold, and an estimate between them."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from scipy.special import xlogy

from experiments.bench.open_worlds import open_world
from probes.targets.closed import class_target
from probes.targets.entropy import entropies
from probes.targets.open import open_entropies
from semcal.semantics.class_table import ClassTable


def answered(pi: np.ndarray, wordings: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of M answers, and the log of the mass seen of each class, of classes with so many wordings each."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(m, pi)
    split = rng.dirichlet(np.ones(wordings), pi.shape)
    drawn = rng.multinomial(counts, split) > 0
    with np.errstate(divide="ignore"):
        return counts, np.log((pi[..., None] * split * drawn).sum(-1))


def true_entropy(pi: np.ndarray) -> np.ndarray:
    return -xlogy(pi, pi).sum(1)


WORLDS = [(2, 1.0), (5, 1.0), (40, 0.3), (200, 0.05), (1, 1.0)]


@pytest.mark.parametrize("m", [2, 10, 50])
@pytest.mark.parametrize("wordings", [1, 3, 100])
@pytest.mark.parametrize(("K", "alpha"), WORLDS)
def test_the_entropy_lies_between_its_bounds_in_expectation(K: int, alpha: float, wordings: int, m: int) -> None:
    pi = np.random.default_rng(1).dirichlet(np.full(K, alpha), 600)
    counts, log_seen = answered(pi, wordings, m, seed=2)
    found, H = entropies(counts / m, m, log_seen=log_seen), true_entropy(pi)
    upper, lower = found.by_mass - H, found.plug_in - H
    assert upper.mean() > -4 * upper.std() / np.sqrt(600) - 1e-9
    assert lower.mean() < 4 * lower.std() / np.sqrt(600) + 1e-9
    assert found.point.mean() <= found.by_mass.mean() + 1e-9
    assert (found.point >= found.plug_in - 1e-9).all() or found.point.mean() == pytest.approx(found.by_mass.mean())


def test_the_bounds_hold_over_all_samples_of_a_small_world() -> None:
    """Enumerated, not simulated: three classes of one, two and three wordings, M = 4."""
    pi = np.array([0.5, 0.3, 0.2])
    owner = np.array([0, 1, 1, 2, 2, 2])
    wording = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    counts, seen, weight = [], [], []
    for drawn in np.ndindex(6, 6, 6, 6):
        counts.append(np.bincount(owner[list(drawn)], minlength=3))
        distinct = sorted(set(drawn))
        seen.append(np.bincount(owner[distinct], wording[distinct], minlength=3))
        weight.append(wording[list(drawn)].prod())
    with np.errstate(divide="ignore"):
        found = entropies(np.array(counts) / 4, 4, log_seen=np.log(np.array(seen)))
    H = float(true_entropy(pi[None])[0])
    assert np.sum(weight) == pytest.approx(1)
    assert np.dot(weight, found.plug_in) < H - 0.05
    assert np.dot(weight, found.by_mass) > H + 0.01


def test_classes_of_one_wording_leave_nothing_open() -> None:
    pi = np.random.default_rng(0).dirichlet(np.ones(8), 400)
    counts, log_seen = answered(pi, 1, 50, seed=1)
    found = entropies(counts / 50, 50, log_seen=log_seen)
    own = -xlogy(counts / 50, pi).sum(1)  # what a perfect predictor pays on these very samples
    np.testing.assert_allclose(found.by_mass, own)


def test_answers_of_many_wordings_are_bounded_by_their_counts() -> None:
    """Of sentences no two of which agree, the mass seen is e^-20 and says nothing; counts of classes do."""
    pi = np.random.default_rng(0).dirichlet(np.full(4, 3.0), 400)
    counts = np.random.default_rng(1).multinomial(50, pi)
    with np.errstate(divide="ignore"):
        log_seen = np.log(counts) - 20.0
    found = entropies(counts / 50, 50, log_seen=log_seen)
    assert (found.by_mass - true_entropy(pi)).mean() < 0.2
    assert found.by_mass.mean() < (-(counts / 50) * np.where(counts, log_seen, 0)).sum(1).mean() / 10


@pytest.mark.parametrize(("K", "alpha", "most"), [(2, 1.0, 0.003), (5, 1.0, 0.01), (40, 0.3, 0.03), (200, 0.05, 0.06)])
def test_the_estimate_at_fifty_samples_is_off_by_little(K: int, alpha: float, most: float) -> None:
    pi = np.random.default_rng(3).dirichlet(np.full(K, alpha), 1500)
    counts = np.random.default_rng(4).multinomial(50, pi)
    found = entropies(counts / 50, 50)
    own = -xlogy(counts / 50, np.maximum(pi, 1e-300)).sum(1)  # as the entropy in expectation, with less noise
    assert abs((own - found.point).mean()) < most < (own - found.plug_in).mean()
    assert np.isnan(found.by_mass).all()


def test_the_estimate_from_counts_is_that_of_chao_wang_and_jost() -> None:
    """Their equation 7, term by term."""
    counts = np.array([10, 5, 2, 1, 1, 1])
    m, once, twice = 20, 3, 1
    harmonic = lambda c: sum(1 / k for k in range(c, m))  # noqa: E731
    seen = sum(c / m * harmonic(int(c)) for c in counts)
    A = 2 * twice / ((m - 1) * once + 2 * twice)
    tail = -log(A) - sum((1 - A) ** r / r for r in range(1, m))
    expected = seen + once / m * (1 - A) ** (1 - m) * tail
    assert entropies(counts[None] / m, m).point[0] == pytest.approx(expected)


def test_exact_masses_have_one_entropy() -> None:
    found = entropies(np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), None)
    for each in (found.plug_in, found.point, found.by_mass):
        np.testing.assert_allclose(each, [1.5 * log(2), 0.0])


def test_one_sample_tells_no_entropy_but_its_probability_bounds_it() -> None:
    found = entropies(np.array([[1.0, 0.0]] * 2), 1, log_seen=np.log([[0.25, 1e-300]] * 2))
    assert np.isnan(found.point).all()
    np.testing.assert_allclose(found.by_mass, -log(0.25))


def test_a_chain_too_improbable_for_a_float_still_bounds() -> None:
    texts = [["a", "b"]] * 4
    table = ClassTable.of_answers(list("wxyz"), list("wxyz"), texts, [[49, 1]] * 4, [frozenset()] * 4)
    table = table.with_masses(texts, [[49, 1]] * 4, [[-0.02, -900.0]] * 4)
    assert table.log_seen is not None
    np.testing.assert_allclose(table.log_seen, [[-0.02, -900.0]] * 4)
    assert np.isfinite(open_entropies(table).by_mass).all()


def test_the_mass_seen_survives_the_disk_and_is_unknown_in_older_tables() -> None:
    answers, counts = [["a", "a", "b"], ["c"]], [[2, 1, 1], [4]]
    gold = [frozenset({"b"}), frozenset({"d"})]
    table = ClassTable.of_answers(["x", "y"], ["x", "y"], answers, counts, gold)
    table = table.with_masses(answers, counts, [np.log([0.4, 0.1, 0.2]).tolist(), [log(0.5)]])
    back = ClassTable.from_frame(table.to_frame())
    assert table.log_seen is not None
    assert back.log_seen is not None
    np.testing.assert_allclose(np.exp(table.log_seen), [[0.5, 0.2], [0.5, 0.0]])
    np.testing.assert_array_equal(back.log_seen, table.log_seen)
    older = ClassTable.from_frame(table.to_frame().drop(columns="log_seen"))
    assert older.log_seen is None
    assert np.isnan(open_entropies(older).by_mass).all()
    np.testing.assert_array_equal(open_entropies(older).plug_in, open_entropies(back).plug_in)


def test_pooled_classes_are_one_class_of_all_the_answers_seen_in_them() -> None:
    rng = np.random.default_rng(0)
    pi = rng.dirichlet(np.full(12, 0.5), 30)
    names = [str(k) for k in range(12)]
    counts = rng.multinomial(20, pi)
    rows = [[names[k] for k in range(12) if c[k]] for c in counts]
    drawn = [[int(c[k]) for k in range(12) if c[k]] for c in counts]
    logs = [[log(p[k]) for k in range(12) if c[k]] for c, p in zip(counts, pi, strict=True)]
    ids = [f"{i:02d}" for i in range(30)]
    table = ClassTable.of_answers(ids, ids, rows, drawn, [frozenset()] * 30).with_masses(rows, drawn, logs)
    target = class_target(table, max_classes=4)
    kept = [names.index(label) for label in target.classes[:-1]]
    other = [k for k in range(12) if k not in kept]
    with np.errstate(divide="ignore"):
        seen = np.log(np.stack([*((pi * (counts > 0))[:, k] for k in kept), (pi * (counts > 0))[:, other].sum(1)], 1))
    expected = entropies(target.distribution, 20, log_seen=seen)
    assert target.entropies is not None
    np.testing.assert_allclose(target.entropies.by_mass, expected.by_mass)
    np.testing.assert_allclose(target.entropies.point, expected.point)
    assert target.entropies.by_mass.mean() < open_entropies(table).by_mass.mean()  # pooling coarsens


@pytest.mark.parametrize(("spread", "classes", "short"), [(2.5, 4000, 0.6), (1.0, 200, 0.1)])
def test_what_the_estimate_lacks_where_answers_are_open(spread: float, classes: int, short: float) -> None:
    """44 classes among 50 samples tell less than docs/methods.md would like: the figure that it quotes."""
    world = open_world(100, classes, spread=spread, seed=1)
    found = open_entropies(world.as_run())
    assert world.entropy - found.point.mean() == pytest.approx(short, abs=0.1)
