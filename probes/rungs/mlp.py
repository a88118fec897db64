"""A probe with one hidden layer: for what can be read from activations, but not linearly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from probes.rungs.rung import Rung, Standardiser, validation_split
from probes.solver.training import Training, train_until_worse
from probes.targets.closed import smoothed
from semcal.seeds import keyed_generator


class MLPProbe(Rung):
    """softmax(W₂·gelu(W₁x + b₁) + b₂) on standardised activations [question, d], with weight decay and early stopping.

    It starts as the training marginal (W₂ = 0), and remains that if no epoch does better on the validation groups.

    Args:
        hidden: width of the hidden layer.
        lr: learning rate of AdamW.
        training: weight decay, minibatches and early stopping.
        seed: of initial weights, minibatches and split.
        device: where it is trained, e.g. "cuda".

    Attributes:
        network_: the trained module.
        best_epoch_: 0: the marginal was never beaten.
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

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:
        raw = torch.as_tensor(inputs)
        self._standardise = Standardiser.of(raw)
        X, targets = self._standardise(raw).to(self.device), smoothed(Y).float().to(self.device)
        marginal = torch.as_tensor(self.marginal_)
        self.network_ = network = one_hidden_layer(X.shape[1], self.hidden, marginal, seed=self.seed).to(self.device)

        def loss(rows: Tensor) -> Tensor:
            return -(targets[rows] * torch.log_softmax(network(X[rows]), 1)).sum(1)

        parts = validation_split(group, self.training.validation, seed=self.seed)
        self.best_epoch_ = train_until_worse(network, loss, *parts, self.training, lr=self.lr, seed=self.seed)

    @torch.inference_mode()
    def _log_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        logits = self.network_(self._standardise(torch.as_tensor(inputs)).to(self.device))
        return torch.log_softmax(logits.cpu().double(), 1).numpy()


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
