"""A training that can be interrupted: its settings, its state, and its checkpoints.

Knows no loss and no data: tensors, settings and folders only. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semcal.errors import UserError

MADE = "atlas.json"  # what made a checkpoint, next to its weights


@dataclass(frozen=True)
class Progress:
    """Reported after every step: mean training loss of the step (nats per token for cross-entropy), tokens of
    training text seen, seconds gone and left, and what else is worth saying, in words."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    seconds_left: float
    said: str = ""


@dataclass(frozen=True)
class Stand:
    """The state of a training after `step` steps.

    Attributes:
        step: Steps done.
        tokens: Tokens of training text seen.
        stream: The state of the generator that training text is drawn from, where there is one.
    """

    step: int
    tokens: int
    stream: dict[str, Any] | None = None


def checkpoint_steps(steps: int, n: int) -> list[int]:
    """n log-spaced steps from 0 (untrained) to `steps`, inclusive."""
    spaced = np.unique(np.round(np.geomspace(min(16, steps), steps, n - 1)).astype(int))
    return [0, *spaced.tolist()]


class Training:
    """The folders of one training: checkpoints `step-N` along the way, the final one, and what is needed to go on.

    Weights in float32 and the optimiser's state go to one safetensors file that replaces its predecessor whole, so an
    interruption at any moment leaves a state to go on from. It is deleted at the end.

    Args:
        made: Settings of the training; a training goes on only under the same.
        checkpoints: Where `step-N` go.
        final: Where the last checkpoint goes.
        steps: Steps in all.
        n: Checkpoints to keep.

    Raises:
        UserError: a training in the same folder was begun with other settings.
    """

    def __init__(self, made: Mapping[str, Any], *, checkpoints: Path, final: Path, steps: int, n: int) -> None:
        self.made, self.checkpoints, self.final, self.steps = dict(made), checkpoints, final, steps
        self.kept_steps = set(checkpoint_steps(steps, n))
        self.saved_every = max(1, steps // 20)
        self._unfinished = checkpoints / "unfinished"
        self._state, self._begun = self._unfinished / "state.safetensors", self._unfinished / MADE
        for file in (final / MADE, self._begun):
            if file.is_file():
                self._refuse_others(json.loads(file.read_text()))
        if not self.finished:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            self._begun.write_text(_as_json(self.made))

    def _refuse_others(self, earlier: dict[str, Any]) -> None:
        ours = json.loads(_as_json(self.made))
        for key in sorted(ours.keys() | (earlier.keys() - {"step", "tokens"})):
            if ours.get(key) != earlier.get(key):
                raise UserError(
                    f"{self.final} was made with {key} {earlier.get(key)!r}, not {ours.get(key)!r}; give the same "
                    "settings to go on, or another --out"
                )

    @property
    def finished(self) -> bool:
        return (self.final / MADE).is_file()

    def stand(self) -> Stand:
        """The state of an interrupted training; step 0 of a new one."""
        if not self._state.is_file():
            return Stand(0, 0)
        with safe_open(self._state, "pt") as state:
            return Stand(**json.loads(state.metadata()["stand"]))

    def restore(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        """Weights and optimiser as they were at `stand()`; left alone at step 0."""
        if not self._state.is_file():
            return
        weights: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(self._state, "pt") as state:
            for key in state.keys():  # noqa: SIM118 - it is not a dictionary
                kind, _, name = key.partition("/")
                if kind == "model":
                    weights[name] = state.get_tensor(key)
                else:
                    which, _, what = name.partition("/")
                    moments.setdefault(int(which), {})[what] = state.get_tensor(key)
        model.load_state_dict(weights, strict=False)  # what is tied to another weight is stored once
        model.tie_weights()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def hold(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, stand: Stand) -> None:
        """Save the state of the training."""
        tensors = {f"model/{name}": p.detach().contiguous() for name, p in model.named_parameters()}
        for which, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{which}/{what}": tensor.contiguous() for what, tensor in moments.items()}
        partial = self._state.with_suffix(".partial")
        save_file(tensors, partial, metadata={"stand": json.dumps(vars(stand))})
        os.replace(partial, self._state)

    def checkpoint(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stand: Stand) -> None:
        """Keep `step-N`."""
        folder = self.checkpoints / f"step-{stand.step}"
        save(model, tokenizer, folder, self.made | {"step": stand.step, "tokens": stand.tokens})

    def after_step(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        loss: float,
        stand: Stand,
    ) -> None:
        """Save what is due after a step: a checkpoint, the state to resume from.

        Raises:
            UserError: the loss, or a weight that is about to be kept, is NaN or infinite.
        """
        due = stand.step in self.kept_steps, stand.step % self.saved_every == 0
        if not math.isfinite(loss):
            raise self.diverged(stand.step, f"its loss is {loss}")
        if any(due) and not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise self.diverged(stand.step, "weights are not finite")
        if due[0]:
            self.checkpoint(model, tokenizer, stand)
        if due[1]:
            self.hold(model, optimizer, stand)

    def diverged(self, step: int, what: str) -> UserError:
        """The error that ends a training that diverged in this step."""
        kept = max((n for n in self.kept_steps if (self.checkpoints / f"step-{n}" / MADE).is_file()), default=None)
        last = "no checkpoint was kept yet" if kept is None else f"the last good one is {self.checkpoints}/step-{kept}"
        return UserError(
            f"training diverged at step {step} of {self.steps} ({what}); {last}; lower learning_rate "
            f"({self.made.get('learning_rate')}) and train into another --out"
        )

    def finish(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stand: Stand) -> Path:
        """Write the final checkpoint, drop the state; returns the folder."""
        save(model, tokenizer, self.final, self.made | {"step": stand.step, "tokens": stand.tokens})
        shutil.rmtree(self._unfinished)
        return self.final


def warm_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """step -> share of the learning rate: up in a line over `warmup` steps, then down along half a cosine to 0."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return share


def adamw(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def scheduled(
    optimizer: torch.optim.Optimizer, share: Callable[[int], float], step: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of the learning rate after `step` steps."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group.get("initial_lr", group["lr"])
    return torch.optim.lr_scheduler.LambdaLR(optimizer, share, last_epoch=step - 1)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, made: Mapping[str, Any]) -> Path:
    """Write a checkpoint in bf16 with what made it, which comes last; the model itself stays in float32."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    (folder / MADE).write_text(_as_json(made))
    return folder


def _as_json(made: Mapping[str, Any]) -> str:
    return json.dumps(made, indent=1) + "\n"
