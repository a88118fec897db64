"""What every rung of the ladder of probes does alike: fit, predict a distribution, score the share of KL explained.

Knows how inputs and targets are checked, ordered and split by group; not what a rung learns from them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from probes.targets.closed import kl_divergence, smoothed
from semcal.seeds import keyed_generator


class Rung(BaseEstimator):
    """A probe from something a model holds before generation to its own class distribution, in scikit-learn's manner.

    A rung learns from `smoothed` targets, as its baseline does. Rows are put in an order of their own, by content,
    before anything is learnt, so that the order in which they are given changes nothing, minibatches included. `fit`
    forgets what an earlier one learnt.

    Subclasses give `_inputs` (checks what is given), `_learn` and `_log_probabilities`.

    Attributes:
        marginal_: [K], the mean of the smoothed training targets, baseline of `score`.
        n_features_in_: d; 0 where inputs have no width.
    """

    marginal_: np.ndarray
    n_features_in_: int

    def fit(self, X: Any, Y: np.ndarray, group: Sequence[str] | None = None) -> Self:
        """Learn to predict Y from X.

        Args:
            X: n inputs; the class says what they are.
            Y: [question, class], rows summing to 1.
            group: [question], questions that a split for early stopping must not part. None: equal inputs are a group.

        Raises:
            ValueError: lengths disagree, an input is not finite, a row of Y is not a distribution, fewer than 2
                questions, or all rows of Y are the same.
        """
        inputs = self._inputs(X)
        Y = np.asarray(Y, dtype=np.float64)
        if Y.ndim != 2 or len(inputs) != len(Y):
            raise ValueError(f"X is {inputs.shape} and Y is {Y.shape}; expected [question, ...] and [question, class]")
        if group is not None and len(group) != len(Y):
            raise ValueError(f"{len(group)} groups for {len(Y)} questions; expected one per question")
        check_targets(Y)
        _check_spread(Y)
        rows = self._row_bytes(inputs)
        names = [str(name) for name in group] if group is not None else [_digest(row) for row in rows]
        marks = [
            _digest(row, target.tobytes(), name.encode()) for row, target, name in zip(rows, Y, names, strict=True)
        ]
        order = np.argsort(marks, kind="stable")
        inputs, targets = inputs[order], torch.as_tensor(Y[order])
        self.n_features_in_ = self._width(inputs)
        self.marginal_ = smoothed(targets).mean(0).numpy()
        self._learn(inputs, targets, [names[i] for i in order])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Class probabilities [question, class]."""
        return np.exp(self.predict_log(X))

    def predict_log(self, X: Any) -> np.ndarray:
        """Their logarithms [question, class], exact where a probability is too small for a float."""
        return self._log_probabilities(self._fitting_inputs(X))

    def score(self, X: Any, Y: np.ndarray) -> float:
        """Share of KL(Y ‖ baseline) explained: 1 perfect, 0 as good as the training marginal, below 0 worse; NaN
        where the baseline leaves nothing to explain."""
        inputs = self._fitting_inputs(X)
        found = self._log_probabilities(inputs)
        if np.shape(Y) != found.shape:
            raise ValueError(
                f"Y is {np.shape(Y)} and the predictions {found.shape}; expected the same questions and classes"
            )
        targets = torch.as_tensor(np.asarray(Y), dtype=torch.float64)
        logs = (torch.as_tensor(log_q) for log_q in (found, np.log(self.marginal_)))
        probe, baseline = (kl_divergence(targets, log_q).sum() for log_q in logs)
        return float(1 - probe / baseline) if baseline > 0 else float("nan")

    def _fitting_inputs(self, X: Any) -> Any:
        check_is_fitted(self)
        inputs = self._inputs(X)
        if (width := self._width(inputs)) != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, the probe was fitted to {self.n_features_in_}; give the same layer's"
            )
        return inputs

    def _warn_unless(self, converged: bool) -> None:
        if not converged:
            text = f"{type(self).__name__} stopped at max_iter={self.get_params(deep=False)['max_iter']}"
            warnings.warn(text, ConvergenceWarning, stacklevel=4)

    def _row_bytes(self, inputs: Any) -> list[bytes]:
        return [np.ascontiguousarray(row).tobytes() for row in inputs]

    def _inputs(self, X: Any) -> Any:
        """X checked: sized, with a shape, indexable by an array of rows. By default activations [question, d]."""
        return check_activations(X)

    def _width(self, inputs: Any) -> int:
        """Features of an input, which must be the same in `predict`; 0 where inputs have none."""
        return inputs.shape[-1]

    def _learn(self, inputs: Any, Y: Tensor, group: Sequence[str]) -> None:
        """Learn from inputs and targets [question, class] (not smoothed), in canonical order."""
        raise NotImplementedError

    def _log_probabilities(self, inputs: Any) -> np.ndarray:
        """[question, class]."""
        raise NotImplementedError


def check_activations(X: Any, *, ndim: int = 2) -> np.ndarray:
    """Activations [question, d] (or more axes) as an array.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    X = np.asarray(X)
    if X.ndim != ndim or not len(X):
        raise ValueError(f"X is {X.shape}; expected [question, {'token, ' * (ndim == 3)}d] with at least one question")
    finite = np.isfinite(X).reshape(len(X), -1).all(1)
    if not finite.all():
        raise ValueError(f"X is not finite at question {int(np.argmin(finite))}; capture it again or leave it out")
    return X


def check_targets(Y: np.ndarray) -> None:
    """Raises ValueError if a row of Y [question, class] is not a distribution, naming the first."""
    valid = np.isfinite(Y).all(1) & (Y >= 0).all(1) & np.isclose(Y.sum(1), 1.0, atol=1e-6)
    if not valid.all():
        raise ValueError(
            f"Y is not a valid distribution at question {int(np.argmin(valid))}; expected masses ≥ 0 that sum to 1"
        )


def validation_split(group: Sequence[str], share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """(rows to fit, rows to validate on): whole groups, drawn by their names, until `share` of the rows is reached.

    Raises:
        ValueError: fewer than two groups.
    """
    members: dict[str, list[int]] = {}
    for row, name in enumerate(group):
        members.setdefault(name, []).append(row)
    if len(members) < 2:
        raise ValueError("one group of questions cannot be split for early stopping; give at least 2 groups")
    drawn = sorted(members, key=lambda name: keyed_generator(seed, "validation", name).random())
    held: list[int] = []
    for name in drawn[:-1]:
        held += members[name]
        if len(held) >= share * len(group):
            break
    kept = sorted(set(range(len(group))) - set(held))
    return torch.tensor(kept), torch.tensor(sorted(held))


def _check_spread(Y: np.ndarray) -> None:
    if len(Y) < 2 or (Y[0] == Y).all():
        raise ValueError(
            f"{len(Y)} question(s) with one and the same class distribution teach a probe nothing; give at least 2 "
            "that differ, or choose another B"
        )


class Padded:
    """Questions padded to one length, indexed by rows; a dataclass whose first field is `states`."""

    states: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.states.shape

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: np.ndarray) -> Self:
        return type(self)(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True)
class Standardiser:
    """Features brought to mean 0 and deviation 1 over the training rows; those constant up to rounding to 0."""

    mean: Tensor
    """[d]."""

    scale: Tensor
    """[d], standard deviations; infinite for constant features."""

    @classmethod
    def of(cls, X: Tensor) -> Standardiser:
        """From training rows [n, d]."""
        X = X.double()
        deviation = X.std(0, correction=0)
        constant = deviation <= 1e-6 * X.square().mean(0).sqrt()
        return cls(X.mean(0), deviation.masked_fill(constant, torch.inf))

    def __call__(self, X: Tensor) -> Tensor:
        """[..., d] -> [..., d] float32."""
        return ((X.double() - self.mean) / self.scale).float()


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\x1f".join(parts), digest_size=16).hexdigest()
