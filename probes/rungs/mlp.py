"""A probe with one hidden layer: what is there to be read, though not along straight lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from probes.rungs.rung import Rung, Standardiser, validation_split
from probes.solver.training import train_until_worse
from probes.targets.closed import smoothed
from semcal.seeds import keyed_generator


class MLPProbe(Rung):
    """softmax(W₂·gelu(W₁x + b₁) + b₂) on standardised activations [question, d], with weight decay and early stopping.

    It begins as the training marginal (W₂ = 0), and if no epoch does better on the validation groups, it stays that.

    Args:
        hidden: width of the hidden layer.
        lr: of AdamW.
        weight_decay: of AdamW, on W₁ and W₂.
        batch_size: of minibatches.
        epochs: at most.
        patience: epochs without a better validation loss before it stops.
        validation: share of the questions, in whole groups, that is kept for early stopping.
        seed: of initial weights, minibatches and split.

    Attributes:
        network_: the trained module.
        best_epoch_: 0: the marginal was never beaten.
    """

    def __init__(
        self,
        hidden: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        epochs: int = 200,
        patience: int = 10,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation = validation
        self.seed = seed

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:
        raw = torch.as_tensor(inputs)
        self._standardise = Standardiser.of(raw)
        X, targets = self._standardise(raw), smoothed(Y).float()
        self.network_ = network = one_hidden_layer(
            X.shape[1], self.hidden, torch.as_tensor(self.marginal_), seed=self.seed
        )

        def loss(rows: Tensor) -> Tensor:
            return -(targets[rows] * torch.log_softmax(network(X[rows]), 1)).sum(1)

        fit, validation = validation_split(group, self.validation, seed=self.seed)
        self.best_epoch_ = train_until_worse(
            network,
            loss,
            fit,
            validation,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            seed=self.seed,
        )

    @torch.inference_mode()
    def _log_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        logits = self.network_(self._standardise(torch.as_tensor(inputs)))
        return torch.log_softmax(logits.double(), 1).numpy()


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
