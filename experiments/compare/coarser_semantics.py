"""One run under many Bs on the same samples: does calibration follow how easily B's classes are predicted?

Each B joins classes of the run's own (`semcal.semantics.collapsing.coarser`). Its calibration error is read off the
joined classes, its KL gap is that of a probe of the activations before the answer. What is drawn of questions for
intervals is drawn alike for every B, so that relations over Bs have intervals as well.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.cluster import KMeans

from experiments.config.study import Cell
from experiments.probe.generative_rung import over_all_classes
from experiments.probe.open_classes import MOST_POOLED, OpenClasses, features_of, is_open, spellings
from experiments.probe.probed import activations_of, probe_device
from experiments.sample.models import Models
from probes.activations.layers import Layers
from probes.evaluation.baselines import held_out_marginal
from probes.evaluation.folds import nested_folds
from probes.evaluation.kl_gap import KLGap, at_best_layer, kl_gaps
from probes.evaluation.layerwise import CrossValidation, evaluate_all
from probes.evaluation.result import BILINEAR, GENERATIVE, LINEAR, Seeds
from probes.targets.closed import class_target
from probes.targets.open import Universe, open_entropies, open_target
from semcal.arrays import FloatArray
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.over_semantics import Relation, relation
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import null_of
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.coarser import Coarsening, as_clusters, coarsenings

log = logging.getLogger(__name__)
FEWEST_QUESTIONS = 50  # with one gold class; a KL gap and an error over fewer say nothing
FEWEST_OF_KIND = 6  # Bs of one kind, for a relation over them
CLUSTERS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Swept:
    """A run under many Bs.

    Attributes:
        frame: one row per B, columns b, kind, classes (distinct ones in the run), granularity (entropy of its classes
            over all questions, nats), rung (linear, bilinear or generative), accuracy, confidence, smece, null_mean,
            excess and gap with their intervals, and marginal_gap (the KL gap of the mean distribution of other
            questions), nats.
        excess, gap: [B, resample] replicates; column r is of one resample of questions in both.
        left_out: questions with several gold classes, or none.
        constant, alike: names of Bs that put everything into one class, or join classes like one before them.
    """

    frame: pd.DataFrame
    excess: FloatArray
    gap: FloatArray
    left_out: int
    constant: tuple[str, ...]
    alike: tuple[str, ...]


@dataclass(frozen=True)
class _Coarse:
    """One B, and the questions' classes under it."""

    b: Coarsening
    table: ClassTable
    classes: int


def sweep(cell: Cell, run: Run, tell: Callable[[str], None] = lambda _: None) -> Swept:
    """Calibration error and KL gap of a scored run under every B of `coarsenings` and under clusters of its classes.

    Questions without exactly one gold class are left out: coarser Bs would have several. KL gaps are those of linear
    probes, or where more than MOST_POOLED of the mass would be pooled of bilinear ones, at the last prompt token at
    four depths; each half of the groups is read at the layer that does best on the other half. If the run's own classes
    are closed, its study has the generative rung and the model is at hand, they are those of that rung: one adapter a
    fold predicts the run's own classes, and what it gives them is added up as a B joins them.

    Raises:
        UserError: no activations, or too few questions with one gold class.
    """
    activations = activations_of(cell, run, LAST_PROMPT_TOKEN)
    rows = np.flatnonzero(activations.present)
    whole = run.class_table().select(rows)
    kept = whole.gold.sum(1) == 1
    if kept.sum() < FEWEST_QUESTIONS:
        raise UserError(
            f"{run.folder}: {int(kept.sum())} questions with one gold class; a sweep over B needs {FEWEST_QUESTIONS}"
        )
    table = whole.select(kept)
    tell("clustering classes")
    labels = sorted({label for own in table.classes for label in own})
    features = dict(zip(labels, _features(cell, run, labels), strict=True))
    coarse, constant, alike = _distinct(table, [*coarsenings(), *_clusters(labels, features, cell.seed)])
    stored = Layers.stored(activations)
    stored = stored.only([stored.names[at] for at in _depths(len(stored.names))])
    layers = Layers(stored.names, lambda index: stored.read(index)[kept], stored.row_bytes)
    adapted = None if GENERATIVE not in cell.probes.rungs else _by_adapters(cell, run, table, tell)
    tell(f"probing {len(coarse)} Bs")
    gaps = _gaps(cell, coarse, layers, features) if adapted is None else _joined(cell, coarse, table, adapted)
    tell(f"calibrating {len(coarse)} Bs")
    detail = cell.calibration.detail(cell.seed)
    found = [_row(one, *gaps[one.b.name], detail) for one in coarse]
    frame = pd.DataFrame([row for row, _, _ in found])
    excess, gap = np.stack([e for _, e, _ in found]), np.stack([g for _, _, g in found])
    return Swept(frame, excess, gap, int((~kept).sum()), constant, alike)


def relations(found: Swept, *, delta: float, small_gap: float, level: float) -> dict[str, Relation]:
    """How error goes with the gap over all Bs, and over those of each kind that has at least FEWEST_OF_KIND."""
    frame = found.frame
    of = {"all": np.arange(len(frame))}
    of |= {str(kind): rows for kind, rows in frame.groupby("kind", sort=False).indices.items()}
    excess, gap, granularity = frame[["excess", "gap", "granularity"]].to_numpy(float).T
    return {
        name: relation(
            *(excess[rows], gap[rows], found.excess[rows], found.gap[rows]),
            granularity=granularity[rows],
            **{"delta": delta, "small_gap": small_gap, "level": level},
        )
        for name, rows in of.items()
        if len(rows) >= FEWEST_OF_KIND
    }


def _depths(layers: int) -> list[int]:
    """A quarter, half and three quarters of the way up, and the last layer."""
    return sorted({round(part * (layers - 1) / 4) for part in (1, 2, 3, 4)})


def _features(cell: Cell, run: Run, labels: Sequence[str]) -> FloatArray:
    """[class, feature], by the run's model where it is at hand, else by spelling."""
    try:
        known = features_of(cell, run, labels, Models())
    except UserError as error:
        log.warning("%s: classes are clustered and known to probes by their spelling alone: %s", run.folder, error)
        return spellings(labels, seed=cell.seed)
    return np.stack([known[label] for label in labels])


def _clusters(labels: Sequence[str], features: dict[str, FloatArray], seed: int) -> list[Coarsening]:
    """Coarser meanings: k-means of the directions of the classes' features, for each number of clusters."""
    values = np.stack([features[label] for label in labels]).astype(np.float64)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(float).tiny)
    return [
        as_clusters(f"{k} clusters", labels, KMeans(k, n_init="auto", random_state=seed).fit_predict(values).tolist())
        for k in CLUSTERS
        if k < len(labels)
    ]


def _distinct(table: ClassTable, bs: Sequence[Coarsening]) -> tuple[list[_Coarse], tuple[str, ...], tuple[str, ...]]:
    """The Bs that tell something apart and differ from those before them; names of the others."""
    labels = sorted({label for own in table.classes for label in own})
    kept, constant, alike, seen = [], [], [], set()
    for b in bs:
        codes, classes = pd.factorize(np.array([b.apply(label) for label in labels], dtype=object))
        if len(classes) < 2:
            constant.append(b.name)
        elif (key := codes.tobytes()) in seen:
            alike.append(b.name)
        else:
            seen.add(key)
            kept.append(_Coarse(b, table.coarser(b.apply), len(classes)))
    return kept, tuple(constant), tuple(alike)


def _gaps(
    cell: Cell, coarse: Sequence[_Coarse], layers: Layers, features: dict[str, FloatArray]
) -> dict[str, tuple[str, FloatArray, float]]:
    """Name of a B -> rung, [question] KL gaps of its classes, and the mean gap of the marginal."""
    how = CrossValidation(folds=cell.probes.folds, permutations=0, exchanges=0, device=probe_device(cell.probes.device))
    group, found = coarse[0].table.groups.tolist(), dict[str, tuple[str, FloatArray, float]]()
    targets = {one.b.name: class_target(one.table, max_classes=cell.probes.max_classes) for one in coarse}
    closed = [one for one in coarse if targets[one.b.name].pooled <= MOST_POOLED]
    fitted = evaluate_all(
        layers, [targets[one.b.name] for one in closed], group=group, how=how, resampling=Resampling(seed=cell.seed)
    )
    for one, evaluation in zip(closed, fitted, strict=True):
        found[one.b.name] = (LINEAR, *_of_layers(evaluation.gaps, group, cell.seed))
    for one in coarse:
        if one.b.name not in found:
            known = features | _known(open_target(one.table).classes, features, cell.seed)
            classes = OpenClasses.of(one.table, known, how, Resampling(seed=cell.seed))
            gaps = (*classes.evaluation(classes.fit(layers)).gaps[:-1], *classes.marginal().gaps[:1])
            found[one.b.name] = (BILINEAR, *_of_layers(gaps, group, cell.seed))
    return found


def _by_adapters(cell: Cell, run: Run, table: ClassTable, tell: Callable[[str], None]) -> FloatArray | None:
    """[question, class] log-probabilities by the generative rung; None where it cannot be had."""
    if is_open(cell, table):
        log.warning("%s: its classes are open, so gaps are not those of the generative rung", run.folder)
        return None
    try:
        model = Models().of_run(cell, run)
    except UserError as error:
        log.warning("%s: gaps are not those of the generative rung, which reads the model: %s", run.folder, error)
        return None
    ids = dict(zip(run.questions()["id"], run.prompt_ids(), strict=True))
    return over_all_classes(cell, run, model, table, [ids[key] for key in table.questions], tell)


def _joined(
    cell: Cell, coarse: Sequence[_Coarse], table: ClassTable, log_q: FloatArray
) -> dict[str, tuple[str, FloatArray, float]]:
    """As `_gaps`, of predicted classes [question, class] that are joined as each B joins them. What is predicted of
    strings that no answer was counts as missed."""
    classes, group, seeds = open_target(table).classes, table.groups.tolist(), Seeds.of(cell.seed)
    folds, resampling = nested_folds(group, cell.probes.folds, seeds.folds), Resampling(seed=cell.seed)
    found = dict[str, tuple[str, FloatArray, float]]()
    for one in coarse:
        target = open_target(one.table)
        places = {label: column for column, label in enumerate(target.classes)}
        column = [places[one.b.apply(label)] for label in classes]
        joined = np.full((len(places), len(target)), -np.inf)
        np.logaddexp.at(joined, column, log_q.T)
        marginal = held_out_marginal(target, folds, Universe.of(target, group).size)
        rows = np.stack([joined[target.column, target.question], marginal])
        gaps = kl_gaps(target, rows, open_entropies(one.table), group, resampling)
        found[one.b.name] = (GENERATIVE, gaps[0].per_question, gaps[1].gap)
    return found


def _known(classes: Sequence[str], features: dict[str, FloatArray], seed: int) -> dict[str, FloatArray]:
    """Features of classes that are no classes of the run, such as first words: their spelling."""
    if all(label in features for label in classes):
        return {}
    return dict(zip(classes, spellings(classes, seed=seed), strict=True))


def _of_layers(gaps: Sequence[KLGap], group: Sequence[str], seed: int) -> tuple[FloatArray, float]:
    """[question] at the layer that does best on the other half; and the mean of the last row, the marginal."""
    *layers, marginal = gaps
    return at_best_layer(np.stack([one.per_question for one in layers]), np.asarray(group), seed), marginal.gap


def _row(
    one: _Coarse, rung: str, gaps: FloatArray, marginal: float, detail: Resampling
) -> tuple[dict[str, object], FloatArray, FloatArray]:
    """The row of one B, and replicates of its excess and gap."""
    found, group = one.table.by_count, one.table.groups
    null = null_of(one.table, null_draws=detail.null_draws, seed=detail.seed)
    error = bootstrap_interval(
        lambda c, a, *, weight: smece_batch(c, a, weight=weight).values,
        (found.plug_in, found.correct),
        **{"resampling": detail, "group": group, "centred": True, "bounds": (0.0, 1.0)},
    )
    gap = bootstrap_interval(_mean, (gaps,), resampling=detail, group=group)
    excess = error.estimate - null.mean
    row = {
        "b": one.b.name,
        "kind": one.b.kind,
        "classes": one.classes,
        "granularity": _granularity(one.table),
        "rung": rung,
    }
    row |= {"accuracy": float(found.correct.mean()), "confidence": float(found.plug_in.mean())}
    row |= {"smece": error.estimate, "null_mean": null.mean, "excess": excess}
    row |= {"excess_low": error.low - null.mean, "excess_high": error.high - null.mean}
    row |= {"gap": gap.estimate, "gap_low": gap.low, "gap_high": gap.high, "marginal_gap": marginal}
    return row, excess + error.replicates - error.replicates.mean(), gap.replicates


def _granularity(table: ClassTable) -> float:
    """Entropy of the classes of all questions together, nats: how finely a B divides, whatever is predictable of it."""
    total = Counter[str]()
    for row in table.distributions:
        total.update(row)
    return float(entropy(list(total.values())))


def _mean(values: FloatArray, *, weight: FloatArray) -> FloatArray:
    return weight @ values / weight.sum(1)
