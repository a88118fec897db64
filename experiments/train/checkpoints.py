"""Training that can be interrupted: its settings, its state, and its checkpoints. Knows no loss and no data."""

import json
import math
import os
import shutil
import time
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

RECORD = "training.json"  # what made a checkpoint of `semcal train --from`, next to its weights
LOST_AT_MOST = 60.0  # seconds of training between two saved states


@dataclass(frozen=True)
class Progress:
    """Reported after every step: mean training loss of the step (nats per token for cross-entropy), tokens of
    training text seen so far, seconds elapsed and left, and anything else worth reporting, in words."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    seconds_left: float
    said: str = ""


@dataclass(frozen=True)
class TrainingState:
    """The state of a training run after `step` steps and `tokens` tokens of training text; `stream` is the state of the
    generator that training text is drawn from, if there is one."""

    step: int
    tokens: int
    stream: dict[str, Any] | None = None


def checkpoint_steps(steps: int, n: int) -> list[int]:
    """n log-spaced steps from 0 (untrained) to `steps`, inclusive; none if n is 0."""
    if not n:
        return []
    spaced = np.unique(np.round(np.geomspace(min(16, steps), steps, n - 1)).astype(int))
    return [0, *spaced.tolist()]


@dataclass(frozen=True)
class Format:
    """How checkpoints are written.

    Attributes:
        record: Name of the file, next to the weights, that says what made them.
        step, final: Write the weights of a checkpoint along the way, and of the last one, into a folder.
    """

    record: str
    step: Callable[[PreTrainedModel, Path], None]
    final: Callable[[PreTrainedModel, Path], None]


def in_bfloat16(model: PreTrainedModel, folder: Path) -> None:
    """Write a model in bf16; the model itself stays as it is."""
    model.save_pretrained(folder, state_dict={name: t.to(torch.bfloat16) for name, t in model.state_dict().items()})


class Training:
    """The folders of one training run: checkpoints `step-N` along the way, the final one, and the state to resume from.

    Trained weights in float32 and the optimiser's state go to one safetensors file that is replaced atomically, at
    least once a minute, so a run can be resumed after an interruption at any moment. It is deleted at the end.

    Args:
        made: Settings of the run (steps, checkpoints, warmup, learning_rate and weight_decay among them); it can only
            be resumed with the same.
        checkpoints: Parent folder of `step-N`.
        final: Folder of the last checkpoint.
        written: How checkpoints are written.
        noted: Written down beside `made`, and free to change, such as where a file lies.

    Raises:
        UserError: a run in the same folder was started with different settings.
    """

    def __init__(
        self,
        made: Mapping[str, Any],
        *,
        checkpoints: Path,
        final: Path,
        written: Format,
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        self.made, self.checkpoints, self.final, self.steps = dict(made), checkpoints, final, made["steps"]
        self.written, self.noted = written, dict(noted or {})
        self.kept_steps = set(checkpoint_steps(self.steps, made["checkpoints"]))
        self.saved_every = max(1, self.steps // 20)
        self._unfinished = checkpoints / "unfinished"
        self._state, self._begun = self._unfinished / "state.safetensors", self._unfinished / written.record
        for file in (final / written.record, self._begun):
            if file.is_file():
                earlier, ours = json.loads(file.read_text()), json.loads(_as_json(self.made))
                for key in sorted(ours.keys() | (earlier.keys() - {"step", "tokens", *self.noted})):
                    if ours.get(key) != earlier.get(key):
                        raise UserError(
                            f"{final} was made with {key} {earlier.get(key)!r}, not {ours.get(key)!r}; repeat these "
                            f"settings to resume, choose another --out, or move {final} away"
                        )
        if not self.finished:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            self._begun.write_text(_as_json(self.noted | self.made))

    @property
    def finished(self) -> bool:
        return (self.final / self.written.record).is_file()

    def begin(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[TrainingState, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Restore what is trained of a model; returns the state, AdamW (which decays matrices only) and its schedule.

        The learning rate rises linearly over `warmup` steps, then falls along half a cosine to 0.
        """
        warmup, reached = self.made["warmup"], TrainingState(0, 0)
        self._model, self._tokenizer = model, tokenizer
        parameters = list(self._trained().values())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.made["weight_decay"]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        rate = self.made["learning_rate"]
        self._optimizer = optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
        if self._state.is_file():
            reached = self._restore()
        elif 0 in self.kept_steps:
            self._write(self.checkpoints / "step-0", self.written.step, reached)

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = (step - warmup) / max(1, self.steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        for group in optimizer.param_groups:
            group["initial_lr"] = group.get("initial_lr", group["lr"])
        self._resumed, self._started = reached.step, time.monotonic()
        self._held = self._started
        return reached, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share, last_epoch=reached.step - 1)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def _restore(self) -> TrainingState:
        weights: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(self._state, "pt") as state:
            reached = TrainingState(**json.loads(state.metadata()["stand"]))
            for key in state.keys():  # noqa: SIM118 - it is not a dictionary
                kind, _, name = key.partition("/")
                if kind == "model":
                    weights[name] = state.get_tensor(key)
                else:
                    which, _, what = name.partition("/")
                    moments.setdefault(int(which), {})[what] = state.get_tensor(key)
        self._model.load_state_dict(weights, strict=False)  # what is tied to another weight is stored once
        self._model.tie_weights()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return reached

    def _hold(self, reached: TrainingState) -> None:
        tensors = {f"model/{name}": p.detach().contiguous() for name, p in self._trained().items()}
        for which, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{which}/{what}": tensor.contiguous() for what, tensor in moments.items()}
        partial = self._state.with_suffix(".partial")
        save_file(tensors, partial, metadata={"stand": json.dumps(vars(reached))})
        os.replace(partial, self._state)
        self._held = time.monotonic()

    def _write(self, folder: Path, write: Callable[[PreTrainedModel, Path], None], reached: TrainingState) -> None:
        """Write a checkpoint, then the settings that made it."""
        write(self._model, folder)
        self._tokenizer.save_pretrained(folder)
        made = self.noted | self.made | {"step": reached.step, "tokens": reached.tokens}
        (folder / self.written.record).write_text(_as_json(made))

    def after_step(self, loss: float, reached: TrainingState) -> Progress:
        """Save what is due after a step: a checkpoint, the state to resume from.

        Raises:
            UserError: the loss, or a weight that is about to be saved, is NaN or infinite.
        """
        held = reached.step % self.saved_every == 0 or time.monotonic() - self._held > LOST_AT_MOST
        due = reached.step in self.kept_steps, held
        if not math.isfinite(loss):
            raise self.diverged(reached.step, f"its loss is {loss}")
        if any(due) and not all(bool(p.isfinite().all()) for p in self._trained().values()):
            raise self.diverged(reached.step, "weights are not finite")
        if due[0]:
            self._write(self.checkpoints / f"step-{reached.step}", self.written.step, reached)
        if due[1]:
            self._hold(reached)
        seconds = time.monotonic() - self._started
        left = seconds / (reached.step - self._resumed) * (self.steps - reached.step)
        return Progress(reached.step, self.steps, loss, reached.tokens, seconds, left)

    def diverged(self, step: int, what: str) -> UserError:
        """The error that ends a run that diverged in this step."""
        record = self.written.record
        kept = max((n for n in self.kept_steps if (self.checkpoints / f"step-{n}" / record).is_file()), default=None)
        last = "no checkpoint was kept yet" if kept is None else f"the last good one is {self.checkpoints}/step-{kept}"
        return UserError(
            f"training diverged at step {step} of {self.steps} ({what}); {last}; lower learning_rate "
            f"({self.made.get('learning_rate')}) and train into another --out"
        )

    def finish(self, reached: TrainingState) -> Path:
        """Write the final checkpoint and delete the state; returns the folder."""
        self._write(self.final, self.written.final, reached)
        shutil.rmtree(self._unfinished)
        return self.final


def _as_json(made: Mapping[str, Any]) -> str:
    return json.dumps(made, indent=1) + "\n"
