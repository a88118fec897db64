"""Probes that are small networks: one hidden layer on an activation, and attention over the tokens of a segment, which
learns where to look together with what to read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.rungs.rung import Padded, Rung, Standardiser, check_activations, validation_split
from probes.solver.training import Training, train_until_worse
from probes.targets.closed import smoothed
from semcal.seeds import keyed_generator


class NetworkProbe(Rung):
    """A network trained on minibatches, stopped early by groups held out from its training questions.

    It starts as the training marginal, and remains that if no epoch does better on the validation groups.

    Args:
        lr: learning rate of AdamW.
        training: weight decay, minibatches and early stopping.
        seed: of initial weights, minibatches and split.
        device: where it is trained, e.g. "cuda".

    Attributes:
        network_: the trained module.
        best_epoch_: 0: the marginal was never beaten.
    """

    network_: nn.Module
    lr: float
    training: Training
    seed: int
    device: str

    def _network(self, inputs: Any) -> nn.Module:
        """The untrained network for standardised inputs."""
        raise NotImplementedError

    def _rows(self, inputs: Any) -> Tensor:
        """The rows that features are standardised over."""
        return torch.as_tensor(inputs)

    def _tensors(self, inputs: Any) -> tuple[Tensor, ...]:
        """What the network reads, standardised, on its device."""
        return (self._standardise(torch.as_tensor(inputs)).to(self.device),)

    def _learn(self, inputs: Any, Y: Tensor, group: Sequence[str]) -> None:
        self._standardise = Standardiser.of(self._rows(inputs))
        tensors, targets = self._tensors(inputs), smoothed(Y).float().to(self.device)
        self.network_ = network = self._network(inputs).to(self.device)

        def loss(rows: Tensor) -> Tensor:
            return -(targets[rows] * torch.log_softmax(network(*(own[rows] for own in tensors)), 1)).sum(1)

        parts = validation_split(group, self.training.validation, seed=self.seed)
        self.best_epoch_ = train_until_worse(network, loss, *parts, self.training, lr=self.lr, seed=self.seed)

    @torch.inference_mode()
    def _log_probabilities(self, inputs: Any) -> np.ndarray:
        return torch.log_softmax(self.network_(*self._tensors(inputs)).cpu().double(), 1).numpy()


class MLPProbe(NetworkProbe):
    """softmax(W₂·gelu(W₁x + b₁) + b₂) on standardised activations [question, d]; W₂ is 0 at first.

    Args:
        hidden: width of the hidden layer.
        lr, training, seed, device: see `NetworkProbe`.
    """

    def __init__(
        self,
        hidden: int = 256,
        lr: float = 1e-3,
        training: Training = Training(),  # noqa: B008 - it is frozen
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.training = training
        self.seed = seed
        self.device = device

    def _network(self, inputs: np.ndarray) -> nn.Module:
        return one_hidden_layer(inputs.shape[1], self.hidden, torch.as_tensor(self.marginal_), seed=self.seed)


def one_hidden_layer(d: int, hidden: int, marginal: Tensor, *, seed: int) -> nn.Sequential:
    """d -> hidden -> K logits, which are at first those of `marginal` [K] whatever comes in."""
    generator = torch.Generator().manual_seed(int(keyed_generator(seed, "initial weights").integers(2**62)))
    with torch.device("meta"):  # where nothing is drawn
        first, last = nn.Linear(d, hidden), nn.Linear(hidden, len(marginal))
    network = nn.Sequential(first, nn.GELU(), last).to_empty(device="cpu")
    with torch.no_grad():
        first.weight.normal_(std=d**-0.5, generator=generator)
        first.bias.zero_()
        last.weight.zero_()
        last.bias.copy_(marginal.log())
    return network


@dataclass(frozen=True)
class Segments(Padded):
    """Activations at every token of a segment of each prompt.

    Raises:
        ValueError: the shapes disagree, or a question has no token.
    """

    states: np.ndarray
    """[question, token, d]; never read where the mask is False, but must be finite there."""

    mask: np.ndarray
    """[question, token], True at the tokens of the segment."""

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or self.mask.shape != self.states.shape[:2]:
            raise ValueError(
                f"states are {self.states.shape} and mask is {self.mask.shape}; expected [question, token, d] and "
                "[question, token]"
            )
        if not self.mask.any(1).all():
            raise ValueError(f"the segment of question {int(np.argmin(self.mask.any(1)))} has no token; leave it out")

    @classmethod
    def of(cls, states: np.ndarray, lengths: np.ndarray) -> Segments:
        """From the tokens of all segments laid end to end [token, d], and how many each question has [question].

        Raises:
            ValueError: the lengths do not add up, or a question has no token.
        """
        if lengths.sum() != len(states):
            raise ValueError(f"there are {len(states)} tokens, and the segments' lengths add up to {lengths.sum()}")
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.zeros((*mask.shape, states.shape[1]), dtype=states.dtype)
        padded[mask] = states
        return cls(padded, mask)


class AttentionProbe(NetworkProbe):
    """softmax(W·Σ_t a_t h_t + b) with a = softmax over the tokens of a segment of q·h_t; q, W and b learnt together.

    X is `Segments`. States are standardised over all tokens of the training segments. It starts as the training
    marginal on the mean of the tokens (W = 0, q = 0); nothing is drawn but the minibatches and the split.

    Args:
        lr, training, seed, device: see `NetworkProbe`; W is decayed.
    """

    def __init__(
        self,
        lr: float = 3e-3,
        training: Training = Training(),  # noqa: B008 - it is frozen
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.lr = lr
        self.training = training
        self.seed = seed
        self.device = device

    def _inputs(self, X: Segments) -> Segments:
        if not isinstance(X, Segments):
            raise ValueError(f"X is a {type(X).__name__}; expected Segments(states, mask)")
        check_activations(X.states, ndim=3)
        return X

    def _row_bytes(self, inputs: Segments) -> list[bytes]:
        return [states[mask].tobytes() for states, mask in zip(inputs.states, inputs.mask, strict=True)]

    def _tensors(self, inputs: Segments) -> tuple[Tensor, Tensor]:
        states = self._standardise(torch.as_tensor(inputs.states))
        return states.to(self.device), torch.as_tensor(inputs.mask, device=self.device)

    def _rows(self, inputs: Segments) -> Tensor:
        return torch.as_tensor(inputs.states[inputs.mask])

    def _network(self, inputs: Segments) -> nn.Module:
        return _Pooled(inputs.shape[2], torch.as_tensor(self.marginal_))


class _Pooled(nn.Module):
    def __init__(self, d: int, marginal: Tensor) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(d))
        self.value = nn.Parameter(torch.zeros(d, len(marginal)))
        self.bias = nn.Parameter(marginal.log().float())

    def weights(self, states: Tensor, mask: Tensor) -> Tensor:
        """[question, token] from states [question, token, d] and mask [question, token]."""
        scores = states @ self.query / states.shape[2] ** 0.5
        return scores.masked_fill(~mask, -torch.inf).softmax(1)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Logits [question, class]."""
        pooled = torch.einsum("nt,ntd->nd", self.weights(states, mask), states)
        return pooled @ self.value + self.bias
