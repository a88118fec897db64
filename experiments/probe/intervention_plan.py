"""Which interventions are made: probes fitted on one half of a run's questions, interventions on the other half, and
random controls for each. Knows activations and the class table; no model is needed yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probes.interventions.edits import Ablate, Intervention, Patch, Steer
from probes.interventions.subspaces import (
    chosen_probe,
    confidence_direction,
    covariance,
    probe_subspace,
    random_subspaces,
    removed_variance,
)
from probes.targets.closed import class_target
from probes.targets.scalars import b_confidence
from semcal.errors import UserError
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable

KINDS = ("ablate", "steer", "patch")
LEFT_ALONE = "none"  # the kind of a row where the model was not changed
ISOTROPIC, MATCHED, DONORS = "isotropic", "matched", "donors"


@dataclass(frozen=True)
class Wanted:
    """What `semcal intervene` does: "ablate" subspaces of the class probe of these ranks, "steer" along the confidence
    probe by these sizes (standard deviations), or "patch"; with `random` controls of each sort per intervention."""

    kind: str = "ablate"
    ranks: tuple[int, ...] = (8,)
    sizes: tuple[float, ...] = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
    random: int = 20


@dataclass(frozen=True)
class Halves:
    """Row numbers of the questions that probes are fitted on, and of those that are changed; no group is in both."""

    fit: np.ndarray
    changed: np.ndarray

    @classmethod
    def of(cls, group: Sequence[str], n: int, seed: int) -> Halves:
        """Half of the groups to fit on, and up to n questions of the others.

        Raises:
            UserError: too few groups.
        """
        distinct = sorted(set(group))
        if len(distinct) < 4:
            raise UserError(
                f"{len(distinct)} groups of questions are too few to split in two halves; ask questions of at least 4"
            )
        rng = keyed_generator(seed, "intervene", "halves")
        shuffled = rng.permutation(len(distinct))
        first = {distinct[i] for i in shuffled[: len(distinct) // 2]}
        in_fit = np.array([g in first for g in group])
        others = rng.permutation(np.flatnonzero(~in_fit))[:n]
        return cls(np.flatnonzero(in_fit), np.sort(others))


@dataclass(frozen=True)
class Fitting:
    """What interventions at one hook and position are made from: [question, d] activations of all questions of the run;
    `max_classes` is that of the class probe."""

    table: ClassTable
    values: np.ndarray
    halves: Halves
    max_classes: int
    seed: int

    @property
    def fit(self) -> np.ndarray:
        """[question of the first half, d]."""
        return self.values[self.halves.fit].astype(np.float64)

    @property
    def fit_groups(self) -> list[str]:
        return self.table.groups[self.halves.fit].tolist()


@dataclass(frozen=True)
class Condition:
    """One intervention on some questions.

    Attributes:
        labels: name, rank, size, control, draw, `readable` (share that the probe explains on the changed questions) and
            `overlap` (of a control with its intervention: mean squared cosine of principal angles).
        questions: row numbers of those it is made on.
    """

    labels: dict[str, Any]
    made: Intervention
    questions: np.ndarray = field(repr=False)


def conditions(wanted: Wanted, hook: str, of: Fitting) -> Iterator[Condition]:
    """Every intervention of interest at a hook, each followed by its controls."""
    return {"ablate": _ablations, "steer": _steerings, "patch": _patches}[wanted.kind](wanted, hook, of)


def _ablations(wanted: Wanted, hook: str, of: Fitting) -> Iterator[Condition]:
    target = class_target(of.table, max_classes=of.max_classes)
    fit, changed = of.fit, of.halves.changed
    probe = chosen_probe(fit, target.distribution[of.halves.fit], of.fit_groups, seed=of.seed)
    readable = probe.score(of.values[changed], target.distribution[changed])
    mean, cov = fit.mean(0), covariance(fit)
    for rank in wanted.ranks:
        basis = probe_subspace(probe.weight_, rank, cov)
        yield _condition(Ablate(hook, basis, mean), changed, name="probe", rank=rank, readable=readable)
        for control, draws in _random(wanted.random, basis, cov, of.seed).items():
            for draw, other in enumerate(draws):
                labels = {"name": "probe", "rank": rank, "control": control, "draw": draw}
                yield _condition(Ablate(hook, other, mean), changed, overlap=_overlap(basis, other), **labels)


def _steerings(wanted: Wanted, hook: str, of: Fitting) -> Iterator[Condition]:
    fit, changed, confidence = of.fit, of.halves.changed, b_confidence(of.table)
    direction = confidence_direction(fit, confidence[of.halves.fit], of.fit_groups, seed=of.seed)
    correlation = np.corrcoef(of.values[changed] @ direction, confidence[changed])[0, 1]
    readable = float(max(0.0, correlation) ** 2)  # a direction of the wrong sign reads nothing
    length = float(np.linalg.norm(direction))
    unit = direction[:, None] / length
    controls = _random(wanted.random, unit, covariance(fit), of.seed)
    for size in wanted.sizes:
        yield _condition(Steer(hook, direction, size), changed, name="confidence", size=size, readable=readable)
        for control, draws in controls.items():
            for draw, other in enumerate(draws):
                labels = {"name": "confidence", "size": size, "control": control, "draw": draw}
                steer = Steer(hook, length * other[:, 0], size)  # the same norm for all
                yield _condition(steer, changed, overlap=_overlap(unit, other), **labels)


def _patches(wanted: Wanted, hook: str, of: Fitting) -> Iterator[Condition]:
    """Questions in the lowest third of confidence get activations from the highest third, and the reverse; controls get
    those of any questions. All donors come from the half that is not changed."""
    confidence, donors = b_confidence(of.table), of.halves.fit
    low, high = np.quantile(confidence, [1 / 3, 2 / 3])
    for name, takes, gives in (
        ("high into low", confidence <= low, confidence >= high),
        ("low into high", confidence >= high, confidence <= low),
    ):
        changed = of.halves.changed[takes[of.halves.changed]]
        chosen = donors[gives[donors]]
        if not len(changed) or not len(chosen):
            raise UserError(f"no question to patch {name}: B-confidence hardly varies in this run; ask more questions")
        yield _condition(_patch(hook, of, changed, chosen, name), changed, name=name)
        for draw in range(wanted.random):
            patch = _patch(hook, of, changed, donors, f"{name} {draw}")
            yield _condition(patch, changed, name=name, control=DONORS, draw=draw)


def _patch(hook: str, of: Fitting, changed: np.ndarray, donors: np.ndarray, purpose: str) -> Patch:
    given = keyed_generator(of.seed, "intervene", "patch", purpose).choice(donors, len(changed))
    return Patch(hook, {of.table.questions[i]: of.values[j] for i, j in zip(changed, given, strict=True)})


def _random(count: int, basis: np.ndarray, cov: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Controls of a subspace, of the same rank."""
    (width, rank), matched = basis.shape, {"cov": cov, "removed": removed_variance(basis, cov)}
    return {
        ISOTROPIC: random_subspaces(width, rank, count, seed=seed),
        MATCHED: random_subspaces(width, rank, count, seed=seed, **matched),
    }


def _overlap(basis: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(basis.T @ other).sum() / max(1, basis.shape[1]))


def _condition(made: Intervention, questions: np.ndarray, **labels: Any) -> Condition:
    blank = {"rank": 0, "size": 0.0, "control": "", "draw": 0, "readable": float("nan"), "overlap": float("nan")}
    return Condition(blank | labels, made, questions)
