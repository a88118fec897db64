"""Training of the adapters of an `Emitter` on class distributions: draws, steps, validation, and what a stop leaves.

Knows token ids and shares. Everything drawn depends on (seed, name, pass over the questions) alone, so that a training
that goes on after a stop ends as if there had been none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probes.rungs.emitting.emitter import Emitter
from probes.solver.token_trees import TokenTree
from semcal.errors import NonFiniteError
from semcal.runs.files import write_atomically
from semcal.seeds import keyed_generator

_SAVED_EVERY = 60.0  # seconds
_WARM_UP = 10  # steps at most
_DECAY = 0.01
_PATIENCE = 2  # rounds without a lower validation loss, after which the rate falls


@dataclass(frozen=True)
class Asked:
    """One question: its prompt, and the sequences that may follow with their shares, which sum to 1.

    Attributes:
        prompt: token ids.
        sequences: [sequence] token ids.
        shares: [sequence].
    """

    prompt: Sequence[int]
    sequences: Sequence[Sequence[int]]
    shares: np.ndarray

    def drawn(self, draws: int, rng: np.random.Generator) -> tuple[list[Sequence[int]], np.ndarray]:
        """Sequences and weights whose expectation is the distribution: all of them where they are no more than `draws`,
        else those that `draws` evenly spaced marks hit on the shares laid end to end in random order (Madow 1949)."""
        if len(self.sequences) <= draws:
            return list(self.sequences), self.shares
        order = rng.permutation(len(self.sequences))
        edges = np.append(0, np.cumsum(self.shares[order]))
        hits = np.diff(np.floor(edges * (draws / edges[-1]) + rng.random() + 1e-9))
        return [self.sequences[i] for i in order[hits > 0]], hits[hits > 0] / hits.sum()


@dataclass(frozen=True)
class Schedule:
    """Adam with decoupled weight decay. The rate rises for a few steps and stays until validation stops improving; then
    it falls in a line to 0, from the best adapters so far. So nobody has to say beforehand how long to train.

    Attributes:
        rate: the highest.
        rounds: at that rate, at most; each is followed by a validation.
        cooling: rounds in which the rate falls.
        steps: of a round, which is a pass over the questions where these are neither few nor a part of a larger set.
        draws: sequences of a question in a pass.
        batch: questions in a step.
        seed: of draws and of the order of questions.
    """

    rate: float
    rounds: int
    cooling: int
    steps: int
    draws: int
    batch: int
    seed: int

    def rate_at(self, step: int, cooled_at: int | None = None) -> float:
        """The rate of a step, counted from 0, where cooling began at some step or has not begun."""
        warm, since = min(_WARM_UP, max(1, self.steps // 2)), step - (cooled_at or 0)
        left = 1.0 if cooled_at is None else 1 - since / (self.cooling * self.steps)
        return self.rate * min((since + 1) / warm, left)


@dataclass
class AdapterTraining:
    """One training, which can be stopped after any step.

    Attributes:
        emitter: whose adapters are trained; they are set when training begins or goes on.
        name: of the training in messages, e.g. "fold 1"; part of the seeds.
        learnt, validated: questions.
        schedule: how.
        file: where the state is kept.
        told: hears the loss of every step.
        training: [round] mean loss in nats per question, those of cooling last.
        validation: [round] likewise, the first one before any training.
        cooled_at: the step at which cooling began; None: it has not.
    """

    emitter: Emitter
    name: str
    learnt: Sequence[Asked]
    validated: Sequence[Asked]
    schedule: Schedule
    file: Path
    told: Callable[[float], None]
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    cooled_at: int | None = None

    def __post_init__(self) -> None:
        self.step, self._sum = 0, 0.0
        self._saved = time.monotonic()
        if self.file.exists():
            self._load()
            return
        self._adapters = self.emitter.initial()
        self._best, self._moments = self._adapters, {}

    @property
    def round(self) -> int:
        """Whole rounds so far."""
        return len(self.training)

    @property
    def best(self) -> int:
        """The round after which validation was best; 0: before training."""
        return int(np.argmin(self.validation))

    @property
    def worsened(self) -> bool:
        """Whether the last rounds did not improve on one before them; one alone may be noise, at the full rate."""
        return self.best < len(self.validation) - _PATIENCE

    @property
    def best_adapters(self) -> dict[str, Tensor]:
        """The adapters of the round `best`."""
        return self._best

    def until(self, rounds: int) -> None:
        """Train at the full rate until so many rounds are done, or validation has stopped improving.

        Raises:
            NonFiniteError: a loss that is not finite.
        """
        self._train(lambda: self.cooled_at is None and self.round < rounds and not self.worsened)

    def finish(self) -> None:
        """Train at the full rate to its end, and let the rate fall to 0.

        Raises:
            NonFiniteError: a loss that is not finite.
        """
        self.until(self.schedule.rounds)
        began = self.cooled_at
        if began is None:
            began = self.cooled_at = self.step
            self._adapters, self._moments = self._best, {}
        end = began + self.schedule.cooling * self.schedule.steps
        self._train(lambda: self.step < end)

    def _train(self, goes_on: Callable[[], bool]) -> None:
        self.emitter.set(self._adapters)
        if not self.validation:
            self._validate()
        parameters = list(self.emitter.adapters.values())
        optimiser = torch.optim.AdamW(parameters, lr=self.schedule.rate, weight_decay=_DECAY)
        if self._moments:
            optimiser.load_state_dict(self._state_of(optimiser))
        batches = self._batches()
        for _ in range(self.step):
            next(batches)
        while goes_on():
            rows, draw = next(batches)
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.rate_at(self.step, self.cooled_at)
            optimiser.zero_grad()
            loss = self._gradients(rows, draw)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            self.step += 1
            self._sum += loss
            self._keep(optimiser)
            self.told(loss)
            if self.step % self.schedule.steps == 0:
                self.training.append(self._sum / self.schedule.steps)
                self._sum = 0.0
                self._validate()
                self._save()
            elif time.monotonic() - self._saved > _SAVED_EVERY:
                self._save()

    def _batches(self) -> Iterator[tuple[np.ndarray, str]]:
        """Endlessly: rows of questions whose prompts have about the same length, and the name of the pass."""
        lengths = np.array([len(asked.prompt) for asked in self.learnt])
        number = 0
        while True:
            rng = keyed_generator(self.schedule.seed, self.name, f"pass {number}")
            order = rng.permutation(len(lengths))
            ranked = order[np.argsort(lengths[order], kind="stable")]
            batches = np.array_split(ranked, -(-len(ranked) // self.schedule.batch))
            for index in rng.permutation(len(batches)):
                yield batches[index], f"pass {number}"
            number += 1

    def _gradients(self, rows: np.ndarray, draw: str) -> float:
        """Adds up gradients of the mean loss of some questions; returns the loss in nats per question."""
        trees, weights = [], []
        for row in rows:
            for tree, shares in self._grown(self.learnt[row], (self.name, draw, str(row))):
                trees.append(tree)
                weights.append(tree.weights(shares) / len(rows))
        loss = 0.0
        for part in self.emitter.passes(trees):
            weight = torch.as_tensor(np.concatenate([weights[i] for i in part]), device=self.emitter.device).float()
            nats = -(weight * self.emitter.log_p([trees[i] for i in part])).sum()
            if not torch.isfinite(nats):
                raise NonFiniteError(
                    f"LoRA, {self.name}, step {self.step + 1}: the loss is {nats.item()} at a learning rate of "
                    f"{self.schedule.rate:g}; lower the rate, or load the model in float32"
                )
            nats.backward()
            loss += nats.item()
        return loss

    def _grown(self, asked: Asked, key: Sequence[str]) -> Iterator[tuple[TokenTree, np.ndarray]]:
        """Trees of what is drawn of a question, with the share of each of their sequences."""
        sequences, shares = asked.drawn(self.schedule.draws, keyed_generator(self.schedule.seed, *key))
        first = 0
        for tree in self.emitter.grown(asked.prompt, sequences):
            yield tree, shares[first : first + tree.sequences]
            first += tree.sequences

    def _validate(self) -> None:
        """Appends the mean loss of the validation questions on draws that are always the same."""
        asked, shares = [], []
        for row, question in enumerate(self.validated):
            rng = keyed_generator(self.schedule.seed, "validation", str(row))
            sequences, share = question.drawn(self.schedule.draws, rng)
            asked.append((question.prompt, sequences))
            shares.append(share)
        scores = self.emitter.score_all(asked)
        loss = float(np.mean([-(share * score).sum() for share, score in zip(shares, scores, strict=True)]))
        if not np.isfinite(loss):
            raise NonFiniteError(
                f"LoRA, {self.name}, step {self.step}: the loss on validation questions is {loss} at a learning rate "
                f"of {self.schedule.rate:g}; lower the rate, or load the model in float32"
            )
        self.validation.append(loss)
        if self.best == self.round:
            self._best = self.emitter.get()

    # ---- what a stop leaves --------------------------------------------------------------------------------------

    def _keep(self, optimiser: torch.optim.Optimizer) -> None:
        self._moments = {
            f"{index}.{name}": value
            for index, state in optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }

    def _state_of(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self._moments.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        return optimiser.state_dict() | {"state": state}

    def _save(self) -> None:
        self._adapters = self.emitter.get()
        parts = {"adapters": self._adapters, "best": self._best, "moments": self._moments}
        tensors = {f"{part}/{name}": t.detach().clone() for part, some in parts.items() for name, t in some.items()}
        facts = {"step": self.step, "sum": self._sum, "training": self.training, "validation": self.validation}
        facts |= {"cooled_at": self.cooled_at}
        write_atomically(self.file, lambda path: save_file(tensors, path, {"facts": json.dumps(facts)}))
        self._saved = time.monotonic()

    def _load(self) -> None:
        parts: dict[str, dict[str, Tensor]] = {"adapters": {}, "best": {}, "moments": {}}
        with safe_open(self.file, "pt") as stored:
            facts = json.loads(stored.metadata()["facts"])
            for key in stored.keys():  # noqa: SIM118 - it is no dictionary
                part, _, name = key.partition("/")
                parts[part][name] = stored.get_tensor(key)
        self._adapters, self._best, self._moments = parts["adapters"], parts["best"], parts["moments"]
        self.step, self._sum = facts["step"], facts["sum"]
        self.training, self.validation, self.cooled_at = facts["training"], facts["validation"], facts["cooled_at"]
