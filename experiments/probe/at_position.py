"""The probes that a study asks for, fitted at one position of a run, without the model.

Rungs that read the model itself are in `with_model.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from probes.activations.layers import Layers
from probes.evaluation.baselines import marginal_row
from probes.evaluation.contrast import explained_differences
from probes.evaluation.cross_validation import Source
from probes.evaluation.layerwise import evaluate, evaluate_scalar
from probes.evaluation.reliability import sampling_variance
from probes.evaluation.result import BASELINE, LINEAR, Ceiling, Evaluation, at_layer
from probes.evaluation.rungwise import candidates, evaluate_rung
from probes.evaluation.texts import TEXT_PENALTIES, Texts
from probes.rungs.attention import Segments
from probes.rungs.rung import Rung
from probes.targets.closed import (
    ClassTarget,
    b_confidence,
    class_target,
    mode_correctness,
    number_of_classes,
    ranked_target,
    semantic_entropy,
    share_target,
)
from semcal.calibration.inference.paired import Difference
from semcal.errors import UserError
from semcal.positions import ALL_QUESTION_TOKENS
from semcal.runs.run import Run

READ_A_LAYER = ("ridge-logit", "low-rank", "mlp")  # rungs above the linear one, by one layer at one token
log = logging.getLogger(__name__)
SCALARS = {"b_confidence": b_confidence, "entropy": semantic_entropy, "n_classes": number_of_classes}


@dataclass(frozen=True)
class Asked:
    """The questions of a run that have a position.

    Attributes:
        rows: [question] which of the run's questions they are.
        table: [question] their rows of `Run.questions`.
        masses: [question] class -> mass.
        gold: [question] the classes that are correct.
        counts: [question, class] samples, each question with columns of its own; None where answers were enumerated.
    """

    rows: np.ndarray
    table: pd.DataFrame
    masses: Sequence[Mapping[str, float]]
    gold: Sequence[Collection[str]]
    counts: np.ndarray | None

    @classmethod
    def of(cls, run: Run, rows: np.ndarray) -> Asked:
        classes = run.class_table().select(rows)
        return cls(rows, run.questions().iloc[rows], classes.distributions, classes.gold_classes, classes.counts)

    @property
    def group(self) -> list[str]:
        return list(self.table["group"])

    @property
    def texts(self) -> Texts:
        return Texts.of(list(self.table["text"]), list(self.table["prompt_tokens"]))


def fit_position(cell: Cell, run: Run, position: str, asked: Asked) -> list[Evaluation]:
    """Every target by every rung and baseline that the study asks for and that needs no model, at one position.

    A target that is the same for all questions is warned of; what is explained of it is 0 or NaN.

    Raises:
        UserError: a layer in `probes.rung_layers` that was not captured, naming the nearest.
    """
    for name in cell.probes.targets:
        if _constant(cell, name, asked):
            log.warning(
                "%s: target %s is the same for all %d questions that have the position %s: nothing to explain; ask "
                "other questions, draw more samples, or choose another B",
                cell.label, name, len(asked.rows), position,
            )  # fmt: skip
    if position == ALL_QUESTION_TOKENS:
        return list(_attention(cell, run, asked))
    names = run.activation_layers(position)
    layers = Layers(names, lambda i: layer_of(run, position, names[i]))
    chosen = _chosen(cell, layers)
    found: list[Evaluation] = []
    for name in cell.probes.targets:
        if "linear" in cell.probes.rungs:
            found.append(fit_linear(cell, name, layers, asked, permutations=cell.probes.permutations))
        if name not in SCALARS:
            found += _above(cell, name, layers, chosen, asked)
        if "tfidf" in cell.probes.baselines:
            text: dict[str, Any] = {"rung": "baseline:tfidf", "penalties": TEXT_PENALTIES, "permutations": 0}
            found.append(fit_linear(cell, name, asked.texts, asked, **text))
    return found


def _constant(cell: Cell, name: str, asked: Asked) -> bool:
    if name in SCALARS:
        return np.ptp(SCALARS[name](asked.masses)) == 0
    rows = distribution_target(cell, name, asked)[0].distribution
    return bool((rows == rows[0]).all())


def fit_linear(cell: Cell, name: str, source: Source, asked: Asked, **settings: Any) -> Evaluation:
    """One target by linear probes of whatever can be read like layers; `settings` as in `evaluate`."""
    common: dict[str, Any] = {"name": name, "group": asked.group, "folds": cell.probes.folds, "seed": cell.seed}
    if name in SCALARS:
        noise = _noise(name, asked, cell.seed)
        return evaluate_scalar(source, SCALARS[name](asked.masses), noise_variance=noise, **common, **settings)
    target, ceiling = distribution_target(cell, name, asked)
    return evaluate(source, target, ceiling=ceiling, **common, **settings)


def fit_rung(
    cell: Cell, name: str, path: Sequence[Rung], X: Any, asked: Asked, *, rung: str, layer: str, control: bool = True
) -> Evaluation:
    """One target that is a distribution by one rung at one layer; see `evaluate_rung`."""
    target, ceiling = distribution_target(cell, name, asked)
    common: dict[str, Any] = {"name": name, "ceiling": ceiling, "group": asked.group}
    common |= {"folds": cell.probes.folds, "seed": cell.seed}
    return evaluate_rung(path, X, target, rung=rung, layer=layer, control=control, **common)


def layer_of(run: Run, position: str, layer: str) -> np.ndarray:
    """[question, d] of the questions that have the position, which has one token."""
    return run.activations(position, [layer]).values[:, 0]


def samples_of(cell: Cell) -> int | None:
    """M, or None where answers were enumerated."""
    return cell.sampling.m if cell.sampling.exact is None else None


def distribution_target(cell: Cell, name: str, asked: Asked) -> tuple[ClassTarget, Ceiling | None]:
    """A target that is a distribution, and its ceiling; None: it is to be estimated from M."""
    m = samples_of(cell)
    if name == "classes":
        return class_target(asked.masses, max_classes=cell.probes.max_classes, m=m), None
    # Sorting and choosing the mode add a noise that M alone does not tell: no ceiling is known, unless there is none.
    ceiling = Ceiling() if m is not None else None
    if name == "ranked":
        return ranked_target(asked.masses, m=m), ceiling
    return share_target(mode_correctness(asked.masses, asked.gold), name=name, m=m), ceiling


def _above(cell: Cell, name: str, layers: Layers, chosen: Sequence[str], asked: Asked) -> Iterator[Evaluation]:
    """The rungs above the linear one that read a layer."""
    rungs = [rung for rung in cell.probes.rungs if rung in READ_A_LAYER]
    for layer in chosen if rungs else ():
        X = layers.layer(layers.names.index(layer), len(asked.rows))
        for rung in rungs:
            path = candidates(rung, m=samples_of(cell), seed=cell.seed)
            yield fit_rung(cell, name, path, X, asked, rung=rung, layer=layer)


def _noise(name: str, asked: Asked, seed: int) -> float | None:
    """Sampling variance of a scalar; not of the number of classes, whose variance does not fall as 1/M."""
    if asked.counts is None:
        return 0.0
    statistics = {"b_confidence": _top_share, "entropy": _entropy}
    return sampling_variance(asked.counts, statistics[name], seed=seed) if name in statistics else None


def _top_share(counts: np.ndarray) -> np.ndarray:
    return counts.max(1) / counts.sum(1)


def _entropy(counts: np.ndarray) -> np.ndarray:
    share = counts / counts.sum(1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(1)


def _attention(cell: Cell, run: Run, asked: Asked) -> Iterator[Evaluation]:
    """Attention probes over every token of the question."""
    if "attention" not in cell.probes.rungs:
        return
    names = run.activation_layers(ALL_QUESTION_TOKENS)
    path = candidates("attention", m=samples_of(cell), seed=cell.seed)
    for layer in _chosen(cell, Layers(names, lambda _: np.empty((0, 0)))):
        stored = run.activations(ALL_QUESTION_TOKENS, [layer])
        segments = Segments.of(stored.values[:, 0], stored.rows[asked.rows])
        for name in (t for t in cell.probes.targets if t not in SCALARS):
            yield fit_rung(cell, name, path, segments, asked, rung="attention", layer=layer)


def _chosen(cell: Cell, layers: Layers) -> tuple[str, ...]:
    """The layers that rungs above the linear one are fitted at: those asked for, or the middle one and the last."""
    names = layers.names
    if not cell.probes.rung_layers:
        return tuple(dict.fromkeys((names[len(names) // 2], names[-1])))
    try:
        return layers.only(cell.probes.rung_layers).names
    except ValueError as error:
        raise UserError(f"probes.rung_layers: {error}") from None


def table_of(evaluations: Sequence[Evaluation], position: str, *, with_marginal: bool) -> pd.DataFrame:
    """The rows of all evaluations at a position; with the marginal's own, which explains nothing, for each target."""
    frames = [e.frame for e in evaluations]
    if with_marginal:
        first: dict[str, Evaluation] = {}
        for e in evaluations:
            first.setdefault(str(e.frame["target"].iloc[0]), e)
        frames += [marginal_row(e) for e in first.values()]
    return pd.concat(frames, ignore_index=True).assign(position=position)


def losses_of(evaluations: Sequence[Evaluation], position: str, ids: Sequence[str]) -> pd.DataFrame:
    """Held-out nats of each question, for the target "classes": a row a question, rung and layer."""
    frames = []
    for e in (e for e in evaluations if e.frame["target"].iloc[0] == "classes"):
        for (_, row), losses in zip(e.frame.iterrows(), e.losses, strict=True):
            own = {"position": position, "rung": row["rung"], "layer": row["layer"], "question_id": list(ids)}
            nats = {"baseline_nats": e.baseline.astype(np.float32), "probe_nats": losses.astype(np.float32)}
            frames.append(pd.DataFrame(own | nats))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def stored_evaluation(run: Run, position: str, ids: Sequence[str]) -> Evaluation:
    """What `semcal probe` has found of the class distribution at a position, on some of the questions probed there."""
    losses, table = run.probe_losses(), run.probes()
    losses = losses.loc[losses["position"] == position, :]
    frame = table.loc[(table["target"] == "classes") & (table["position"] == position) & (table["layer"] != ""), :]
    wide = losses.pivot(index=["rung", "layer"], columns="question_id", values="probe_nats")
    baseline = losses.drop_duplicates("question_id").set_index("question_id")["baseline_nats"]
    rows = wide.loc[list(zip(frame["rung"], frame["layer"], strict=True)), list(ids)]
    return Evaluation(frame.reset_index(drop=True), rows.to_numpy(float), baseline.loc[list(ids)].to_numpy(float))


def compare_last_layers(
    a: Run, b: Run, position: str, *, draws: int, level: float, seed: int
) -> tuple[dict[str, Difference], str]:
    """Rung -> how much better the class distribution is predictable in the second of two runs, as shares of their
    ceilings, each run at its own last layer, without baselines; and remarks on it.

    On the questions that both were probed on. Give runs of equal M.

    Raises:
        UserError: a run that was not probed at the position, no common question, or no rung in common.
    """
    one, two, group = _paired(a, b, position)
    layers, sizes = [_last_layer(e) for e in (one, two)], [int(e.frame["n"].iloc[0]) for e in (one, two)]
    told = [] if layers[0] == layers[1] else [f"at the last layers {' and '.join(layers)}"]
    if sizes[0] != sizes[1]:
        told.append(f"probes learnt from {sizes[0]} and {sizes[1]} questions")
    last = [_only(e, layer) for e, layer in zip((one, two), layers, strict=True)]
    try:
        found = explained_differences(*last, group=group, draws=draws, level=level, seed=seed)
    except ValueError:
        raise UserError(f"{a.folder} and {b.folder} share no rung at their last layers; `semcal probe` both") from None
    return {rung: d for (rung, *_), d in found.items()}, "; ".join(told)


def _last_layer(e: Evaluation) -> str:
    """The last layer that linear probes read; none without them."""
    lines = e.frame.loc[e.frame["rung"] == LINEAR, "layer"].tolist()
    return lines[-1] if lines else "none"


def _only(e: Evaluation, layer: str) -> Evaluation:
    """Rungs at one layer, whatever its name; no baselines."""
    probes = e.frame.loc[~e.frame["rung"].str.startswith(BASELINE), :]
    rows = at_layer(probes, layer).index.to_numpy()
    return Evaluation(e.frame.loc[rows, :].assign(layer="last"), e.losses[rows], e.baseline)


def _paired(a: Run, b: Run, position: str) -> tuple[Evaluation, Evaluation, list[str]]:
    """What was found of two runs on the questions that both were probed on, and their groups.

    Raises:
        UserError: see `compare_last_layers`.
    """
    probed = []
    for run in (a, b):
        losses = run.probe_losses()
        if losses.empty or position not in set(losses["position"]):
            raise UserError(f"{run.folder} holds no probes of the class distribution at {position}; `semcal probe` it")
        probed.append(set(losses.loc[losses["position"] == position, "question_id"]))
    table = a.questions()
    common = table.loc[table["id"].isin(probed[0] & probed[1]), :]
    if common.empty:
        raise UserError(f"{a.folder} and {b.folder} were not probed on a common question; give them the same dataset")
    one, two = (stored_evaluation(run, position, list(common["id"])) for run in (a, b))
    return one, two, list(common["group"])
