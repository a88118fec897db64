"""Two ways of learning by gradient: L-BFGS on a smooth objective, and minibatches with early stopping.

Knows parameters and losses; nothing of what they mean.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semcal.errors import NonFiniteError
from semcal.seeds import keyed_generator


def descend(
    parameters: Sequence[Tensor], objective: Callable[[], Tensor], *, max_iter: int, tol: float
) -> tuple[float, bool]:
    """Lower the objective by L-BFGS with a strong Wolfe line search, changing the parameters in place.

    Args:
        parameters: contiguous float64 leaves that `objective` reads.
        max_iter: steps at most.
        tol: stop where a step changes the objective by less.

    Returns:
        (the objective reached, whether `max_iter` sufficed)
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        tolerance_grad=1e-10,
        tolerance_change=tol,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective()
        value.backward()
        return value

    optimiser.step(closure)
    steps = optimiser.state[optimiser.param_groups[0]["params"][0]]["n_iter"]
    for parameter in parameters:
        parameter.requires_grad_(False)
    with torch.no_grad():
        return float(objective()), steps < max_iter


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        weight_decay: of AdamW.
        batch_size: of minibatches.
        epochs: at most.
        patience: epochs without a better validation loss before training stops.
        validation: share of the questions, in whole groups, kept for early stopping.
    """

    weight_decay: float = 0.01
    batch_size: int = 64
    epochs: int = 200
    patience: int = 10
    validation: float = 0.2


def train_until_worse(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    fit: Tensor,
    validation: Tensor,
    training: Training,
    *,
    lr: float,
    seed: int,
) -> int:
    """AdamW on minibatches until the validation loss has not fallen for `patience` epochs; the best weights are kept.

    Matrices are decayed, vectors (biases, queries) are not. The untrained network counts as epoch 0.

    Args:
        network: what is trained, in place.
        loss: rows [b] -> losses [b] of the network on them.
        fit, validation: rows.
        seed: of the order of minibatches.

    Returns:
        The epoch that was best.

    Raises:
        NonFiniteError: a validation loss that is not finite.
    """
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}], lr=lr
    )
    rng = keyed_generator(seed, "minibatches")

    def validate(epoch: int) -> float:
        with torch.no_grad():
            reached = float(torch.cat([loss(rows) for rows in validation.split(4 * training.batch_size)]).mean())
        if not math.isfinite(reached):
            raise NonFiniteError(
                f"the loss is {reached} after epoch {epoch} at a learning rate of {lr:g}; check what is read for "
                "extreme values, or leave it out"
            )
        return reached

    best, best_epoch, kept = validate(0), 0, _copy(network)
    for epoch in range(1, training.epochs + 1):
        for rows in fit[torch.as_tensor(rng.permutation(len(fit)))].split(training.batch_size):
            optimiser.zero_grad()
            loss(rows).mean().backward()
            optimiser.step()
        reached = validate(epoch)
        if reached < best:
            best, best_epoch, kept = reached, epoch, _copy(network)
        elif epoch - best_epoch >= training.patience:
            break
    network.load_state_dict(kept)
    return best_epoch


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts a name, such as that of a fold, before the message of a loss that is not finite."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{where}: {error}") from None


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
