"""The bilinear probe on worlds of open questions with a planted truth: is the KL gap recovered, is a signal found, and
none where there is none? And what does it cost at the size of a large run?"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from experiments.bench.open_worlds import OpenWorld, alike, open_world, target_of
from experiments.bench.probe_cases import peak_growth
from experiments.bench.timing import spent
from experiments.bench.validity.validity_cases import LEVEL, Validity, clopper_pearson
from experiments.compare.probe_rows import bounds
from probes.activations.layers import Layers
from probes.evaluation.folds import nested_folds
from probes.evaluation.kl_gap import kl_gaps
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.open_layers import Split, evaluate_open
from probes.evaluation.result import Seeds
from probes.rungs.bilinear import Bilinear, Observed, class_axes
from probes.targets.open import OpenTarget, open_entropies, open_target
from semcal.calibration.resampling import Resampling

ENTITIES, WIDTHS, QUESTIONS = 20_000, (64, 256), (250, 500, 1000, 2000)
AT = 1000  # questions at which the limits hold
CLOSE = 0.05  # nats
STUDIES, POWER_LIMIT = 200, 0.8
LARGE_N, LARGE_LAYERS, LARGE_D, LARGE_CLASSES, LARGE_K = 1000, 33, 4096, 40_000, 40
SHARD = 100  # questions in a file
LONGEST_S, MOST_BYTES = 30 * 60.0, 6 * 2**30


@dataclass(frozen=True)
class Recovery:
    """How well a planted distribution was found, and how well what is left of it is measured.

    Attributes:
        case: width, questions, and whether activations carry a signal.
        reported_nats: KL gap as `semcal probe` reports it: of the classes drawn, by samples, the entropy estimated.
        reported_low, reported_high: its interval.
        reported_least, reported_most: its bracket; the world has no log-probabilities, so the first is 0.
        measured_nats: the same with the exact entropy.
        truth_nats: KL(π ‖ q) of the same held-out predictions over all ENTITIES, q being divided by its sum over them.
        sum: that sum, mean over questions; 1 where the number of classes never drawn is known.
        candidates_nats: `measured_nats` of the candidate-only model.
        candidates_truth_nats: `truth_nats` of it.
        entropy_nats, estimated_nats: of π, and as estimated from the samples.
        drawn: classes drawn by any question.
        classes: of a question among its samples: 5 %, 50 % and 95 % quantile.
        holds: whether measured and true gap agree within CLOSE, and without signal the gap is that of the
            candidate-only model.
    """

    case: str
    reported_nats: float
    reported_low: float
    reported_high: float
    reported_least: float
    reported_most: float
    measured_nats: float
    truth_nats: float
    sum: float
    candidates_nats: float
    candidates_truth_nats: float
    entropy_nats: float
    estimated_nats: float
    drawn: int
    classes: str
    holds: bool

    @property
    def line(self) -> str:
        """The case in one line, while others are still running."""
        figures = f"gap {self.measured_nats:.3f}, truth {self.truth_nats:.3f}, candidates {self.candidates_nats:.3f}"
        reported = f"reported {self.reported_nats:.3f} [{self.reported_low:.3f}, {self.reported_high:.3f}]"
        return f"{self.case}: {figures}; {reported}{'' if self.holds else ', MISSED'}"

    def to_dict(self) -> dict[str, object]:
        """The fields in order."""
        return asdict(self)


def planted_open_cases(device: str = "auto") -> Iterator[Recovery | Validity]:
    """Worlds of ENTITIES entities, π exactly bilinear of rank 8; then studies without and with a signal."""
    how = CrossValidation(device="cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    for d in WIDTHS:
        for n in QUESTIONS:
            world = open_world(n, ENTITIES, d=d, e=64, rank=8, spread=3.2, seed=1)
            yield recovery(f"d = {d}, {n} questions", world, world.activations, how)
        world = open_world(AT, ENTITIES, d=d, e=64, rank=8, spread=3.2, seed=1)
        noise = np.random.default_rng(2).normal(size=world.activations.shape).astype(np.float32)
        yield recovery(f"d = {d}, {AT} questions, no signal", world, noise, how, signal=False)
        yield recovery(f"d = {d}, {AT} questions, constant", alike(world, seed=3), world.activations, how, signal=False)
    yield counted("3 layers without signal, groups of 2: any found", 0.0, LEVEL, at_most=True)
    yield counted("3 layers, signal in one, groups of 2: found", 1.0, POWER_LIMIT, at_most=False)


def recovery(
    case: str, world: OpenWorld, activations: np.ndarray, how: CrossValidation, *, signal: bool = True
) -> Recovery:
    """Probe one layer of activations [question, d] as `semcal probe` does a run of this world, and score it by samples
    and by π."""
    table = world.as_run()
    target, known = open_target(table), open_entropies(table)
    n, group, at = len(target), table.groups.tolist(), world.places(target)
    embedding = class_axes(world.embedding[at]).to(how.device)
    everywhere = _on_axes(world.embedding, at, embedding)
    block = Layers.of(activations[:, None], ["planted"]).block(slice(0, 1), n, how.device)
    log_q, whole = np.empty((2, len(target.mass))), np.empty((2, 2, n))  # [probe or candidates, KL or sum, question]
    for fold in nested_folds(group, how.folds, Seeds.of(0).folds):
        split = Split.of(target, embedding, group, fold, how.penalties)
        _, model, held_out = next(split.fitted(block, how.penalties))
        for row, one in enumerate((model, split.candidates[1])):
            log_q[row, target.entries(fold.test)] = split.predict(target, one, held_out)
            whole[row][:, fold.test] = _over_all(one, held_out, split.observed[3], everywhere, at, world.pi[fold.test])
    reported = kl_gaps(target, log_q, known, group, Resampling())
    measured, candidates = (gap.cross_entropy - world.entropy for gap in reported)
    truth, candidates_truth = whole[:, 0].mean(1).tolist()
    close = abs(measured - truth) < CLOSE and (signal or abs(measured - candidates) < CLOSE)
    sizes = np.quantile(np.diff(target.starts), [0.05, 0.5, 0.95])
    gap, classes = reported[0], " / ".join(f"{size:.0f}" for size in sizes)
    ends = (gap.low, gap.high, *bounds({"gap_at_least": gap.at_least, "gap_at_most": gap.at_most}))
    of_world = (candidates, candidates_truth, world.entropy, gap.entropy, len(target.classes), classes)
    return Recovery(case, gap.gap, *ends, measured, truth, float(whole[0, 1].mean()), *of_world, bool(close))


def _on_axes(features: np.ndarray, at: np.ndarray, embedding: Tensor) -> np.ndarray:
    """[entity, axis] all entities on the axes of those drawn, `embedding` [class, axis]."""
    affine = np.c_[features, np.ones(len(features))]
    return affine @ np.linalg.lstsq(affine[at], embedding.double().cpu().numpy(), rcond=None)[0]


def _over_all(
    model: Bilinear, scores: Tensor, seen: Observed, everywhere: np.ndarray, at: np.ndarray, pi: np.ndarray
) -> np.ndarray:
    """[2, question] KL(π ‖ q) over all entities, q divided by its sum over them, and that sum."""
    log_share = np.full(len(everywhere), float(seen.shares.log_new[0]))
    log_share[at] = seen.shares.log_share[0].double().cpu().numpy()
    logits = model.directions(scores).double().cpu().numpy() @ everywhere.T + model.trust * log_share
    log_sum = np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_pi = np.log(np.maximum(pi, np.finfo(float).tiny))
    log_total = model.log_total(scores, seen).numpy()
    return np.stack([(pi * (log_pi - logits + log_sum)).sum(1), np.exp(log_sum[:, 0] - log_total)])


def counted(case: str, strength: float, limit: float, *, at_most: bool) -> Validity:
    """In how many STUDIES any layer is called significant at LEVEL."""
    hits = sum(significant(study, strength) for study in range(STUDIES))
    low, high = clopper_pearson(hits, STUDIES)
    holds = low <= limit if at_most else high >= limit
    return Validity(case, hits / STUDIES, low, high, limit, holds, STUDIES)


def significant(study: int, strength: float, n: int = 60, classes: int = 200) -> bool:
    """Whether a study finds a signal in any of three layers, of which the last has one of this strength.

    Two questions of a group share π and most of their activations, so that they are found alike without a signal.
    """
    rng = np.random.default_rng(study)
    pair = np.arange(n) // 2
    latent, embedding = rng.normal(size=(n // 2, 4)), rng.normal(size=(classes, 4))
    logits = latent @ embedding.T + rng.normal(size=(n // 2, classes))
    pi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = replace(target_of(np.stack([rng.multinomial(20, row) for row in pi[pair]])), closed=False)
    layers = rng.normal(size=(n // 2, 3, 4))[pair] + 0.1 * rng.normal(size=(n, 3, 4))
    layers[:, 2] += strength * latent[pair]
    source = Layers.of(layers.astype(np.float32), ["a", "b", "c"])
    how = CrossValidation(folds=3, penalties=(1.0, 10.0, 100.0), exchanges=99)
    found = evaluate_open(source, target, embedding, group=[str(p) for p in pair], how=how, seed=study)
    return bool(found.p_value.min() <= LEVEL)


# ---- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What probing a large run takes; within LONGEST_S on two cores and MOST_BYTES, or it does not hold."""

    case: str
    wall_s: float
    cpu_s: float
    grown_bytes: int
    gain_nats: float
    holds: bool

    @property
    def line(self) -> str:
        """The case in one line."""
        return f"{self.case}: {self.cpu_s / 60:.1f} CPU minutes, {self.grown_bytes / 2**30:.2f} GiB"

    def to_dict(self) -> dict[str, object]:
        """The fields in order."""
        return asdict(self)


def open_probe_cases(device: str = "auto", layers: int = LARGE_LAYERS) -> Iterator[Cost]:
    """Every layer of LARGE_N questions in half precision on disk, LARGE_K classes each, five folds; one shard of one
    layer is read at a time."""
    how = CrossValidation(device="cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    latent, entities = rng.normal(size=(LARGE_N, 16)), rng.normal(size=(LARGE_CLASSES, 16))
    target = _forty_classes(latent, entities, rng)
    features = np.c_[entities @ rng.normal(size=(16, 300)), 2 * rng.normal(size=(LARGE_CLASSES, 300))]
    group = [str(i) for i in range(LARGE_N)]
    with tempfile.TemporaryDirectory() as folder:
        files = _written(Path(folder), latent, layers, rng)
        source = Layers(tuple(f"layer {i}" for i in range(layers)), lambda i: _read(files, i), 4 * LARGE_D)
        found = []

        def probe() -> None:
            found.append(evaluate_open(source, target, features, group=group, how=how))

        times = []
        grown = peak_growth(lambda: times.append(spent(probe)))
    allowed = 2 * LONGEST_S * layers / LARGE_LAYERS  # on two cores
    yield Cost(
        f"{layers} layers, {LARGE_N} questions, d = {LARGE_D}, {len(np.unique(target.column)):,} classes",
        times[0].wall_s,
        times[0].cpu_s,
        grown,
        float(found[0].gain.max()),
        times[0].cpu_s <= allowed and grown <= MOST_BYTES,
    )


def _forty_classes(latent: np.ndarray, entities: np.ndarray, rng: np.random.Generator) -> OpenTarget:
    """LARGE_K classes a question, which depend on its latent variables, of the whole vocabulary."""
    counts = np.zeros((LARGE_N, LARGE_CLASSES), dtype=np.int64)
    for row, own in enumerate(latent):
        pool = rng.choice(LARGE_CLASSES, LARGE_CLASSES // 10, replace=False)
        drawn = pool[np.argsort(-(0.7 * entities[pool] @ own + rng.gumbel(size=len(pool))))[:LARGE_K]]
        counts[row, drawn] = 1 + rng.multinomial(60, rng.dirichlet(np.ones(LARGE_K)))
    return replace(target_of(counts), closed=False)


def _written(folder: Path, latent: np.ndarray, layers: int, rng: np.random.Generator) -> list[Path]:
    """Shards [question, layer, d] in half precision, in which the latent variables become clearer layer by layer."""
    readout = rng.normal(size=(16, LARGE_D)) / 4
    files = []
    for first in range(0, LARGE_N, SHARD):
        rows = latent[first : first + SHARD]
        clear = np.linspace(0, 1, layers)[:, None] * (rows @ readout)[:, None]
        noise = rng.normal(size=(len(rows), layers, LARGE_D))
        files.append(folder / f"{first:06d}.safetensors")
        save_file({"residual": (clear + noise).astype(np.float16)}, files[-1])
    return files


def _read(files: list[Path], layer: int) -> np.ndarray:
    """[question, d] of one layer."""
    parts = []
    for file in files:
        with safe_open(file, framework="np") as stored:
            parts.append(stored.get_slice("residual")[:, layer])
    return np.concatenate(parts)
