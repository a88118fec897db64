"""Probes tried on other runs: what is shared is found, what is not is not, and nothing is given away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from probes.evaluation.rungwise import out_of_fold, predict_elsewhere
from probes.targets.closed import class_targets, share_target
from probes.targets.open import open_entropies, open_targets
from probes.targets.scalars import b_confidence
from probes.transfer.across_runs import ProbedRun, TransferCell, transfer
from probes.transfer.read_outs import ClosedClasses, Confidence, OpenClasses, ReadOut
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable
from tests.probes.tables import table_of

N, K, D = 160, 4, 12
LABELS = "abcd"


@dataclass(frozen=True)
class World:
    """A run before its classes are laid over one vocabulary with those of others."""

    name: str
    activations: np.ndarray
    table: ClassTable
    space: str = ""

    @property
    def group(self) -> list[str]:
        return self.table.groups.tolist()

    @property
    def probed(self) -> ProbedRun:
        return ProbedRun(self.name, self.activations, self.group, list(self.table.questions), self.space)


def material(
    name: str, read_out: np.ndarray, *, seed: int, shared: bool = False, labels: str = LABELS, scale: float = 1.5
) -> World:
    """A run whose activations hold the logits of π along `read_out` [K, d], beside noise; m = 200."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, K)) * scale
    counts = np.stack([rng.multinomial(200, row) for row in softmax(logits, axis=1)])
    X = logits @ read_out + 0.3 * rng.normal(size=(N, D))
    masses = [dict(zip(labels, row.tolist(), strict=True)) for row in counts]
    group = [f"{'' if shared else name} {index // 2}" for index in range(N)]
    return World(name, X.astype(np.float32), table_of(masses, group=group))


def closed(worlds: Sequence[World]) -> ReadOut:
    return ClosedClasses(class_targets([world.table for world in worlds]))


def confidence(worlds: Sequence[World]) -> ReadOut:
    tables = [world.table for world in worlds]
    shares = [share_target(b_confidence(table), name="sure", m=table.m) for table in tables]
    return Confidence(shares, open_targets(tables))


def tried(
    worlds: Sequence[World], read_out: ReadOut | None = None, *, bootstrap: int = 1000, seed: int, **settings: Any
) -> list[TransferCell]:
    runs = [world.probed for world in worlds]
    return transfer(runs, read_out or closed(worlds), resampling=Resampling(bootstrap=bootstrap, seed=seed), **settings)


def directions() -> np.ndarray:
    """2K orthonormal directions [2K, d]: two read-outs that share nothing."""
    return np.linalg.qr(np.random.default_rng(7).normal(size=(D, D)))[0][: 2 * K]


def counts_of(run: World) -> list[dict[str, int]]:
    assert run.table.counts is not None
    rows = zip(run.table.classes, run.table.counts.tolist(), strict=True)
    return [dict(zip(labels, row, strict=False)) for labels, row in rows]


def by_pair(cells: list[TransferCell]) -> dict[tuple[str, str], TransferCell]:
    return {(cell.trained_on, cell.tested_on): cell for cell in cells}


def test_a_shared_read_out_transfers_and_an_orthogonal_one_does_not() -> None:
    axes = directions()
    runs = [
        material("one", axes[:K], seed=0),
        material("same", axes[:K], seed=1),
        material("other", axes[K:], seed=2),
    ]
    cells = tried(runs, folds=4, bootstrap=200, seed=0)
    found = by_pair(cells)
    assert [(c.trained_on, c.tested_on) for c in cells[:3]] == [("one", "one"), ("one", "same"), ("one", "other")]
    for pair in (("one", "one"), ("one", "same"), ("same", "one"), ("other", "other")):
        assert found[pair].gap < 0.2 * found[pair].alone
        assert found[pair].low < found[pair].gap < found[pair].high
        assert found[pair].at_most > found[pair].gap
        assert 0 < found[pair].added_low < found[pair].added < found[pair].added_high
        assert found[pair].floor_q95 < found[pair].gap
    for pair in (("one", "other"), ("other", "one"), ("other", "same")):
        assert found[pair].added < 0.05 * found[pair].alone
    for cell in cells:
        assert cell.added == pytest.approx(cell.alone - cell.gap)
        assert (cell.n, cell.shared, cell.rank) == (N, 0, 0)
        assert np.isnan(cell.mapped)


def test_b_confidence_is_read_in_nats_whatever_the_classes_are_called() -> None:
    """Along the logits' own axes how sure a model is, is not linear; along a direction of its own it is."""
    rng, axes = np.random.default_rng(0), directions()
    worlds = []
    for at, labels in enumerate(("abcd", "wxyz")):
        sure = 1 / (1 + np.exp(-2 * rng.normal(size=N)))
        rest = (1 - sure)[:, None] * np.array([0.5, 0.3, 0.2])
        pi = np.concatenate([sure[:, None], rest], axis=1)
        counts = np.stack([rng.multinomial(200, rng.permutation(row)) for row in pi])
        top = np.log(np.maximum(pi.max(1), 0.51) / (1 - np.maximum(pi.max(1), 0.51)).clip(min=1e-3))
        X = np.outer(top, axes[0]) + 0.1 * rng.normal(size=(N, D))
        masses = [dict(zip(labels, row.tolist(), strict=True)) for row in counts]
        worlds.append(World(labels, X.astype(np.float32), table_of(masses, group=[f"{at} {i}" for i in range(N)])))
    found = by_pair(tried(worlds, confidence(worlds), folds=4, bootstrap=50, seed=0))
    for cell in found.values():
        assert cell.alone > 0.1
        assert cell.gap < 0.35 * cell.alone
        assert cell.covered == 1
        assert np.isnan([cell.at_least, cell.at_most, cell.floor_q95]).all()


def twins(*, shared: bool) -> list[World]:
    """Two runs of the same groups: activations are each group's fingerprint and, weakly, its answer."""
    rng = np.random.default_rng(0)
    groups, copies = 40, 4
    answers = rng.integers(0, K, size=groups)
    prints = rng.normal(size=(groups, 64)) + 0.4 * np.eye(K)[answers] @ rng.normal(size=(K, 64))
    masses = [{LABELS[answers[index // copies]]: 1.0} for index in range(groups * copies)]
    runs = []
    for name in ("concise", "cot"):
        X = np.repeat(prints, copies, axis=0) + 0.01 * rng.normal(size=(groups * copies, 64))
        group = [f"{'' if shared else name} {i // copies}" for i in range(len(X))]
        runs.append(World(name, X, table_of(masses, group=group, enumerated=True)))
    return runs


def test_questions_known_from_the_other_run_give_nothing_away() -> None:
    """A probe tested on a twin of the questions it saw would do better there than on the held-out ones of its own."""
    honest = by_pair(tried(twins(shared=True), folds=4, bootstrap=1, seed=0))
    for one, other in (("concise", "cot"), ("cot", "concise")):
        assert honest[one, other].gap == pytest.approx(honest[one, one].gap, abs=0.02)
    leaky = by_pair(tried(twins(shared=False), folds=4, bootstrap=1, seed=0))  # nobody says they are the same
    for one, other in (("concise", "cot"), ("cot", "concise")):
        assert leaky[one, other].gap < honest[one, other].gap - 0.2


def test_activations_add_nothing_to_permuted_answers() -> None:
    axes, rng = directions(), np.random.default_rng(5)
    runs = []
    for seed in (0, 1):
        run = material(f"run {seed}", axes[:K], seed=seed)
        order = rng.permutation(N)
        runs.append(replace(run, table=replace(run.table.select(order), groups=run.table.groups)))
    cells = tried(runs, folds=4, bootstrap=1, seed=0)
    # Below 0 where a penalty was chosen too light by chance.
    assert all(-0.15 < cell.added / cell.alone < 0.03 for cell in cells)


def test_classes_are_matched_by_label_whatever_their_order() -> None:
    axes = directions()
    one, turned = material("one", axes[:K], seed=0), material("turned", axes[:K], seed=1)
    masses = [dict(reversed(its.items())) for its in counts_of(turned)]
    turned = replace(turned, table=table_of(masses, group=turned.group))
    cell = by_pair(tried([one, turned], folds=4, bootstrap=1, seed=0))["one", "turned"]
    assert cell.gap < 0.2 * cell.alone


def test_classes_that_a_run_never_shows_are_told_and_cannot_be_named() -> None:
    axes = directions()
    runs = [material("letters", axes[:K], seed=0), material("others", axes[:K], seed=1, labels="cdef")]
    found = by_pair(tried(runs, folds=4, bootstrap=1, seed=0))
    assert found["letters", "letters"].covered == 1
    mass = np.mean([(its["c"] + its["d"]) / 200 for its in counts_of(runs[1])])
    assert found["letters", "others"].covered == pytest.approx(mass)
    assert found["letters", "others"].added < 0


def test_the_same_seed_gives_the_same_matrix() -> None:
    axes = directions()
    runs = [material("one", axes[:K], seed=0), material("two", axes[:K], seed=1)]
    first, again, other = (str(tried(runs, folds=3, bootstrap=50, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_probe_sure_of_the_wrong_thing_has_a_finite_loss() -> None:
    """Activations a thousand times larger elsewhere: probabilities that a float cannot tell from 0."""
    axes = directions()
    large = material("large", 1000 * axes[:K], seed=1)
    found = by_pair(tried([material("one", axes[:K], seed=0), large], folds=3, bootstrap=20, seed=0))
    assert np.isfinite(found["one", "large"].gap)
    assert found["one", "large"].gap > 10 * found["one", "large"].alone
    sure = by_pair(tried([material("one", axes[:K], seed=0), large], confidence([large, large]), folds=3, seed=0))
    assert np.isfinite([cell.gap for cell in sure.values()]).all()


def test_what_cannot_be_tried_is_refused() -> None:
    axes = directions()
    one, two = material("one", axes[:K], seed=0), material("two", axes[:K], seed=1)
    narrow = World("narrow", two.activations[:, :5], two.table)
    apart = replace(two.table, questions=tuple(f"other {i}" for i in range(N)))
    few = World("few", two.activations, replace(two.table, groups=np.array(["g", "h"] * (N // 2))))
    for runs, message in (
        ([one], "at least 2"),
        ([one, one], "both called 'one'"),
        ([one, narrow], "12 features and narrow has 5; expected one width in one space"),
        ([one, replace(narrow, space="else", table=apart)], "no question was asked of both in one style"),
        ([one, few], "few: 2 groups of questions cannot be split into 5 folds"),
    ):
        with pytest.raises(ValueError, match=message):
            tried(runs, seed=0)
    with pytest.raises(ValueError, match="d_model] and one of each per question"):
        ProbedRun("odd", one.activations, one.group[1:], one.group)
    with pytest.raises(ValueError, match="targets of"):
        tried([one, two], closed([one]), seed=0)


def test_out_of_fold_predictions_find_what_is_there_and_nothing_else() -> None:
    run = material("one", directions()[:K], seed=0)
    Y = np.array([[its[label] for label in LABELS] for its in counts_of(run)]) / 200
    found = out_of_fold(run.activations, Y, run.group, folds=4, seed=0)
    np.testing.assert_allclose(found.sum(1), 1)
    assert np.abs(found - Y).mean() < 0.1
    shuffled = Y[np.random.default_rng(0).permutation(N)]
    blind = out_of_fold(run.activations, shuffled, run.group, folds=4, seed=0)
    assert np.abs(blind - shuffled.mean(0)).mean() < 0.08


def test_rows_that_are_all_alike_teach_to_predict_just_that() -> None:
    Y = np.tile([1.0, 0.0, 0.0], (20, 1))
    (found,) = predict_elsewhere(np.eye(20), Y, [f"g{i}" for i in range(20)], [np.zeros((2, 20))], seed=0)
    assert found.shape == (2, 3)
    assert np.exp(found)[:, 0] == pytest.approx((20 + 1 / 3) / 21)


def test_runs_of_one_class_have_a_gap_of_nearly_nothing() -> None:
    alike = [World(name, np.eye(20), table_of([{"a": 50}] * 20)) for name in ("one", "two")]
    cells = tried(alike, folds=4, bootstrap=20, seed=0)
    assert np.abs([[cell.gap, cell.added] for cell in cells]).max() < 0.01
    assert {cell.covered for cell in cells} == {1.0}


# ---- open classes ----------------------------------------------------------------------------------------------------

CLASSES, E = 60, 4


def open_runs(texts: np.ndarray, read_out: np.ndarray, *, names: Sequence[str], seed: int = 0) -> list[World]:
    """Runs with classes of their own: the classes' texts are embedded alike, and activations [question, d] hold what
    each question looks for in an embedding along `read_out` [e, d]."""
    rng, worlds = np.random.default_rng(seed), []
    for at, name in enumerate(names):
        wanted = rng.normal(size=(N, E))
        own = texts[at * CLASSES : (at + 1) * CLASSES]
        counts = np.stack([rng.multinomial(50, row) for row in softmax(1.5 * wanted @ own.T, axis=1)])
        labels = [f"class {at * CLASSES + c:03d}" for c in range(CLASSES)]
        masses = [{labels[c]: int(row[c]) for c in np.flatnonzero(row)} for row in counts]
        X = wanted @ read_out + 0.1 * rng.normal(size=(N, read_out.shape[1]))
        worlds.append(World(name, X.astype(np.float32), table_of(masses, group=[f"{name} {i}" for i in range(N)])))
    return worlds


def opened(worlds: Sequence[World], texts: np.ndarray) -> ReadOut:
    tables = [world.table for world in worlds]
    targets = open_targets(tables)
    features = texts[[int(label[-3:]) for label in targets[0].classes]]
    return OpenClasses(targets, [open_entropies(table) for table in tables], [features] * len(worlds))


def test_a_bilinear_probe_names_classes_that_it_never_saw() -> None:
    rng = np.random.default_rng(3)
    texts, axes = rng.normal(size=(2 * CLASSES, E)), directions()
    one, two = open_runs(texts, axes[:E], names=("one", "two"))
    other = replace(two, name="other", activations=rng.permutation(two.activations))
    found = by_pair(tried([one, two], opened([one, two], texts), folds=3, bootstrap=50, seed=0))
    blind = by_pair(tried([one, other], opened([one, other], texts), folds=3, bootstrap=50, seed=0))
    assert found["one", "two"].covered == 0
    for cell in found.values():
        assert cell.added_low > 0.4
    assert blind["one", "other"].added < 0.05
    assert blind["one", "one"].gap == pytest.approx(found["one", "one"].gap, abs=0.01)


def test_activations_of_another_width_are_mapped_from_shared_questions() -> None:
    """Two models asked alike: what one looks for is a linear function of what the other does. Of questions in the held
    out fold nothing is learnt, so answers exchanged between questions are not found."""
    rng = np.random.default_rng(4)
    texts, axes = rng.normal(size=(CLASSES, E)), directions()
    (one,) = open_runs(texts, axes[:E], names=("one",))
    turn = rng.normal(size=(D, 2 * D)) / D**0.5
    wide = (one.activations @ turn + 0.02 * rng.normal(size=(N, 2 * D))).astype(np.float32)
    two = replace(one, name="two", activations=wide, space="wide")
    found = by_pair(tried([one, two], opened([one, two], texts), folds=3, bootstrap=50, seed=0))
    own = found["one", "one"]
    for pair in (("one", "two"), ("two", "one")):
        assert found[pair].added > 0.8 * own.added
        assert found[pair].shared == N
        assert found[pair].mapped > 0.3
        assert found[pair].rank > 0
    assert np.isnan(found["two", "two"].mapped)
    noise = replace(two, activations=rng.permutation(two.activations))
    blind = by_pair(tried([one, noise], opened([one, noise], texts), folds=3, bootstrap=50, seed=0))
    assert blind["one", "two"].added < 0.05
    assert blind["one", "two"].mapped < 0.02
