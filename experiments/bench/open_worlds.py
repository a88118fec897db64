"""Worlds of open questions in which the class distribution is an exact bilinear function of activations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from probes.targets.open import OpenTarget
from semcal.semantics.class_table import ClassTable

_CLASS = "class "


@dataclass(frozen=True)
class OpenWorld:
    """Activations [question, d], embeddings [class, e], π [question, class] and samples of it."""

    activations: np.ndarray
    embedding: np.ndarray
    pi: np.ndarray
    target: OpenTarget

    @property
    def entropy(self) -> float:
        """Mean over questions, nats."""
        return float(-(self.pi * np.log(np.maximum(self.pi, 1e-300))).sum(1).mean())

    def cross_entropy(self, log_q: np.ndarray) -> float:
        """Of the samples, mean over questions, nats, from `log_q` [entry]."""
        return float(-(self.target.mass * log_q).sum() / len(self.target))

    def as_run(self) -> ClassTable:
        """What a run of this world stores: the samples of each question, and no class that was not drawn."""
        target, m = self.target, self.target.m
        assert m is not None
        sizes = np.diff(target.starts)
        counts = np.zeros((len(target), sizes.max()), dtype=np.int64)
        place = np.arange(len(target.column)) - np.repeat(target.starts[:-1], sizes)
        counts[target.question, place] = np.rint(m * target.mass)
        named = np.split(np.array(target.classes)[target.column], target.starts[1:-1])
        return replace(ClassTable.of_arrays(counts), classes=tuple(tuple(own.tolist()) for own in named))

    def places(self, target: OpenTarget) -> np.ndarray:
        """The class of this world behind each class of a target of its run."""
        return np.array([int(label.removeprefix(_CLASS)) for label in target.classes])


def open_world(
    n: int, classes: int, *, d: int = 8, e: int = 8, rank: int = 3, spread: float = 2.5, m: int = 50, seed: int = 0
) -> OpenWorld:
    """Activations and embeddings with decaying spectra; logits have the standard deviation `spread` over classes."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    embedding = rng.normal(size=(classes, e)) / np.sqrt(np.arange(1, e + 1))
    logits = h @ rng.normal(size=(d, rank)) @ rng.normal(size=(rank, e)) @ embedding.T
    pi = np.exp(log_softmax(spread * logits / logits.std(), axis=1))
    return OpenWorld(h.astype(np.float32), embedding, pi, target_of(np.stack([rng.multinomial(m, row) for row in pi])))


def alike(world: OpenWorld, *, seed: int) -> OpenWorld:
    """The same activations of questions that all have the first one's π: nothing remains to be predicted."""
    rng = np.random.default_rng(seed)
    assert world.target.m is not None
    counts = rng.multinomial(world.target.m, world.pi[0], size=len(world.pi))
    return OpenWorld(world.activations, world.embedding, np.tile(world.pi[0], (len(counts), 1)), target_of(counts))


def target_of(counts: np.ndarray) -> OpenTarget:
    """From counts [question, class]; the vocabulary is all classes, drawn or not, and closed."""
    order = np.argsort(-counts, axis=1, kind="stable")
    sizes = (counts > 0).sum(1)
    column = np.concatenate([row[:size] for row, size in zip(order, sizes, strict=True)])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    mass = counts[np.repeat(np.arange(len(counts)), sizes), column] / counts[0].sum()
    names = tuple(f"{_CLASS}{c:06d}" for c in range(counts.shape[1]))
    return OpenTarget(names, starts, column, mass, int(counts[0].sum()), closed=True)
