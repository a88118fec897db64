from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from probes.evaluation.rungwise import out_of_fold, predict_elsewhere
from probes.evaluation.transfer import ProbedRun, TransferCell, transfer
from probes.targets.closed import class_targets
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

    @property
    def group(self) -> list[str]:
        return self.table.groups.tolist()


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


def tried(worlds: Sequence[World], *, bootstrap: int = 1000, seed: int, **settings: Any) -> list[TransferCell]:
    targets = class_targets([world.table for world in worlds])
    runs = [ProbedRun(w.name, w.activations, its, w.group) for w, its in zip(worlds, targets, strict=True)]
    return transfer(runs, resampling=Resampling(bootstrap=bootstrap, seed=seed), **settings)


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
        assert found[pair].explained > 0.8
        assert found[pair].low < found[pair].explained < found[pair].high
        assert found[pair].explained <= found[pair].ceiling + 0.02
    for pair in (("one", "other"), ("other", "one"), ("other", "same")):
        assert found[pair].explained < 0.05
    # What a column is compared with is the same for all its probes.
    assert found["one", "same"].baseline_nats == found["other", "same"].baseline_nats
    assert found["one", "same"].probe_nats == pytest.approx(
        (1 - found["one", "same"].explained) * found["one", "same"].baseline_nats
    )


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
        assert honest[one, other].explained == pytest.approx(honest[one, one].explained, abs=0.02)
    leaky = by_pair(tried(twins(shared=False), folds=4, bootstrap=1, seed=0))  # nobody says they are the same
    for one, other in (("concise", "cot"), ("cot", "concise")):
        assert leaky[one, other].explained > honest[one, other].explained + 0.2


def test_permuted_answers_are_not_explained() -> None:
    axes, rng = directions(), np.random.default_rng(5)
    runs = []
    for seed in (0, 1):
        run = material(f"run {seed}", axes[:K], seed=seed)
        order = rng.permutation(N)
        runs.append(replace(run, table=replace(run.table.select(order), groups=run.table.groups)))
    cells = tried(runs, folds=4, bootstrap=1, seed=0)
    assert all(
        -0.15 < cell.explained < 0.03 for cell in cells
    )  # below 0 where a penalty was chosen too light by chance


def test_classes_are_matched_by_label_whatever_their_order() -> None:
    axes = directions()
    one, turned = material("one", axes[:K], seed=0), material("turned", axes[:K], seed=1)
    masses = [dict(reversed(its.items())) for its in counts_of(turned)]
    turned = replace(turned, table=table_of(masses, group=turned.group))
    assert by_pair(tried([one, turned], folds=4, bootstrap=1, seed=0))["one", "turned"].explained > 0.8


def test_classes_that_a_run_never_shows_are_told_and_cannot_be_named() -> None:
    axes = directions()
    runs = [material("letters", axes[:K], seed=0), material("others", axes[:K], seed=1, labels="cdef")]
    found = by_pair(tried(runs, folds=4, bootstrap=1, seed=0))
    assert found["letters", "letters"].covered == 1
    mass = np.mean([(its["c"] + its["d"]) / 200 for its in counts_of(runs[1])])
    assert found["letters", "others"].covered == pytest.approx(mass)
    assert found["letters", "others"].explained < 0


def test_the_same_seed_gives_the_same_matrix() -> None:
    axes = directions()
    runs = [material("one", axes[:K], seed=0), material("two", axes[:K], seed=1)]
    first = tried(runs, folds=3, bootstrap=50, seed=3)
    assert first == tried(runs, folds=3, bootstrap=50, seed=3)
    assert first != tried(runs, folds=3, bootstrap=50, seed=4)


def test_a_probe_sure_of_the_wrong_thing_has_a_finite_loss() -> None:
    """Activations a thousand times larger elsewhere: probabilities that a float cannot tell from 0."""
    axes = directions()
    large = material("large", 1000 * axes[:K], seed=1)
    found = by_pair(tried([material("one", axes[:K], seed=0), large], folds=3, bootstrap=20, seed=0))
    assert np.isfinite(found["one", "large"].explained)
    assert found["one", "large"].explained < -10


def test_what_cannot_be_tried_is_refused() -> None:
    axes = directions()
    one, two = material("one", axes[:K], seed=0), material("two", axes[:K], seed=1)
    narrow = World("narrow", two.activations[:, :5], two.table)
    few = World("few", two.activations, replace(two.table, groups=np.array(["g", "h"] * (N // 2))))
    for runs, message in (
        ([one], "at least 2"),
        ([one, one], "both called 'one'"),
        ([one, narrow], "12 features and narrow has 5"),
        ([one, few], "few: 2 groups of questions cannot be split into 5 folds"),
    ):
        with pytest.raises(ValueError, match=message):
            tried(runs, seed=0)
    with pytest.raises(ValueError, match="d_model] and one of each per question"):
        ProbedRun("odd", one.activations, class_targets([one.table.select(range(N - 1))])[0], one.group)


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


def test_runs_of_one_class_have_nothing_to_explain() -> None:
    alike = [World(name, np.eye(20), table_of([{"a": 50}] * 20)) for name in ("one", "two")]
    cells = tried(alike, folds=4, bootstrap=20, seed=0)
    assert np.isnan([cell.explained for cell in cells]).all()
    assert {cell.covered for cell in cells} == {1.0}
