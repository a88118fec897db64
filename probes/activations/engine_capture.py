"""Activations that an engine in another process read for itself, kept as `ResidualCapture` keeps those that it sees.

Such an engine reads the residual stream alone, token by token. What its names mean is checked against the model's own
passes before any of it is kept (`experiments.sample.parity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probes.activations.capture import Places
from semcal.errors import NonFiniteError, UserError
from semcal.positions import QUESTION_MEAN, is_residual
from semcal.runs.stored_activations import LARGEST, Activations, too_large

_MIDDLE = "hook_resid_mid"


def readable_layers(hooks: Sequence[str]) -> tuple[str, ...]:
    """The hooks, all of which an engine can read.

    Args:
        hooks: TransformerLens's names, of one model.

    Raises:
        UserError: one that it cannot.
    """
    for name in hooks:
        if not is_residual(name) or name.endswith(_MIDDLE):
            raise UserError(
                f"{name} is not captured in vLLM, which shows what goes into and comes out of a block; set "
                "capture.hooks to blocks.*.hook_resid_post and the like, or engine to hf"
            )
    return tuple(hooks)


class EngineCapture:
    """What was read at some places of prompts.

    Args:
        layers: What is read at each, by TransformerLens's names.
        where: For each prompt's key, what is wanted.
        dtype: "float32" or "float16", in which it will be stored: what does not fit is refused when it comes.
    """

    def __init__(self, layers: Sequence[str], where: Mapping[str, Places], dtype: str = "float32") -> None:
        self.layers, self.where, self.dtype = tuple(layers), where, dtype
        self._read: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def places(self, key: str) -> list[int]:
        """The tokens of a prompt that must be read, ascending."""
        return sorted({place for places in self.where[key].values() for place in places})

    def keep(self, key: str, values: np.ndarray, token_ids: np.ndarray) -> None:
        """Keep what was read at the places of a prompt.

        Args:
            values: [place, layer, d_model] float32.
            token_ids: [place] the tokens found there.

        Raises:
            NonFiniteError: NaN or infinity, naming the question and the first layer that holds it.
            UserError: a number beyond the range of `dtype`, naming the same.
        """
        largest = np.abs(values).max(axis=(0, 2), initial=0.0)  # [layer]
        for name, most in zip(self.layers, largest, strict=True):
            what = f"question {key!r}: activations at {name}"
            if not np.isfinite(most):
                raise NonFiniteError(f"{what} are NaN or infinite")
            if most > LARGEST[self.dtype]:
                raise too_large(what, float(most), self.dtype)
        self._read[key] = values, token_ids

    def take(self, keys: Sequence[str], position: str) -> Activations:
        """What was read at a position of these questions.

        Raises:
            KeyError: a question that was not read.
        """
        values, ids, index, rows = [], [], [], []
        for key in keys:
            wanted = list(self.where[key].get(position, ()))
            rows.append(min(len(wanted), 1) if position == QUESTION_MEAN else len(wanted))
            if not wanted:
                continue
            read, found = self._read[key]
            at = np.searchsorted(self.places(key), wanted)
            averaged = position == QUESTION_MEAN
            values.append(read[at].mean(0, keepdims=True, dtype=np.float32) if averaged else read[at])
            ids += found[at[-1:] if averaged else at].tolist()
            index += wanted[-1:] if averaged else wanted
        n = len(ids)
        return Activations(
            keys=tuple(keys),
            layers=self.layers,
            values=np.concatenate(values) if values else np.zeros((0, len(self.layers), 0), np.float32),
            token_ids=np.array(ids, dtype=np.int64),
            token_index=np.array(index, dtype=np.int64),
            rows=np.array(rows, dtype=np.int64),
            head_layers=(),
            heads=np.zeros((n, 0, 0, 0)),
        )

    def forget(self, keys: Sequence[str]) -> None:
        """Free the memory of these questions."""
        for key in keys:
            self._read.pop(key, None)
