"""The density head: a small mixture of Gaussians over the meanings of answers, read off the hidden state before the
first token, for classes without a common vocabulary.

After "semantic self-distillation" (arXiv 2602.04577). Knows activations, sparse class distributions and embeddings of
the classes' texts; nothing of layers, models or how texts are embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from probes.evaluation.folds import Fold, nested_folds
from probes.evaluation.result import Seeds
from probes.rungs.rung import check_activations
from probes.solver.rotation import rotate
from probes.solver.training import Training, named, train_until_worse
from probes.targets.open import OpenTarget
from semcal.seeds import keyed_generator

_PRIOR_LR = 0.05  # of two numbers
_STARTS, _ROUNDS = 4, 30  # of expectation-maximisation
_UNEVEN = 0.3  # of the Dirichlet that a start shares answers among Gaussians by
_ENOUGH = 1e-3  # nats per question, by which a round has to gain
_NARROW = 1e-3  # σ² at least, where the classes have mean square 1


@dataclass(frozen=True)
class DensityHead:
    """q(c | x) ∝ m_c^a · Σ_j w_j(x) N(e_c; μ_j(x), σ_j(x)² I) over the classes c of a run, μ, log σ and log w linear in
    the activation x.

    e_c is the embedding of the text of c on the leading principal axes of all classes; m_c is the mass of c in the
    questions learnt from, plus τ / C for every one of the C classes. The candidate-only model is m_c^a alone; a and τ
    are learnt. A question is fitted as if its group were not among those that m was counted on, as it is not for a
    held-out question; else a and τ would trust every class to have been seen.

    Gaussians that all start broad and alike move as one to the middle of two modes, and gradients hardly part them. So
    the means start from a mixture of linear regressions of answers on activations, by expectation-maximisation from
    several uneven starts (Jordan & Jacobs 1994, Neural Computation 6:181; De Veaux 1989), and the cross-entropy over
    the run's classes is minimised from there.

    Attributes:
        components: numbers of Gaussians to choose from on the validation groups of each fold.
        axes: principal axes of the embeddings, at most.
        features: principal axes of the standardised activations, at most.
        lr: of AdamW.
        training: weight decay, minibatches and early stopping.
    """

    components: Sequence[int] = (1, 2, 4)
    axes: int = 32
    features: int = 64
    lr: float = 2e-2
    training: Training = Training(batch_size=8, patience=20)  # noqa: RUF009 - it is frozen


@dataclass(frozen=True)
class DensityPrediction:
    """Held-out predictions of the density head.

    Attributes:
        log_q: [entry] log-probabilities of each question's own classes, normalised over the classes of the run.
        log_prior: [entry] likewise by the candidate-only model.
        components: [fold] Gaussians chosen; 0: none did better than the candidate-only model, which is predicted; no
            fold where all answers are in one class, of which nothing is learnt.
    """

    log_q: np.ndarray
    log_prior: np.ndarray
    components: tuple[int, ...]


def density_predictions(
    states: np.ndarray,
    target: OpenTarget,
    embeddings: np.ndarray,
    group: Sequence[str],
    *,
    head: DensityHead | None = None,
    folds: int = 5,
    seed: int = 0,
) -> DensityPrediction:
    """Cross-fitted predictions; folds are those of every other rung with the same seed.

    In each fold the head is fitted to one part of the training groups and stopped by the other. The classes of the run
    are known beforehand, those of held-out questions too, as they are to the candidate-only model.

    Args:
        states: [question, d], finite.
        target: of the same questions.
        embeddings: [class, e], finite, in the order of `target.classes`.
        group: [question] questions that must not straddle a split.
        seed: of folds, initial weights and minibatches.

    Raises:
        ValueError: lengths disagree, a number that is not finite, or too few groups.
        NonFiniteError: a loss that is not finite, naming the fold.
    """
    head = head or DensityHead()
    states, embeddings = check_activations(states), check_activations(embeddings)
    if not len(states) == len(target) == len(group) or len(embeddings) != len(target.classes):
        raise ValueError(
            f"{len(states)} states and {len(group)} groups for {len(target)} questions, {len(embeddings)} embeddings "
            f"for {len(target.classes)} classes; expected one of each"
        )
    if target.one_class:
        return DensityPrediction(np.zeros(len(target.mass)), np.zeros(len(target.mass)), ())
    places = _on_principal_axes(torch.as_tensor(embeddings), head.axes)
    log_q, log_prior, chosen = np.empty(len(target.mass)), np.empty(len(target.mass)), []
    for number, fold in enumerate(nested_folds(group, folds, Seeds.of(seed).folds), start=1):
        inputs = _inputs(torch.as_tensor(states), fold.fit, head.features)
        task = _Task.of(target, fold, group, inputs, places)
        with named(f"fold {number} of {folds}"):
            tried = _heads(task, fold, head, seed)
        alone = tried[0]
        best = min(tried, key=lambda components: task.mean_loss(tried[components], fold.validation))
        entries = target.entries(fold.test)
        log_q[entries], log_prior[entries] = (task.log_q(network, fold.test) for network in (tried[best], alone))
        chosen.append(best)
    return DensityPrediction(log_q, log_prior, tuple(chosen))


def _heads(task: _Task, fold: Fold, head: DensityHead, seed: int) -> dict[int, nn.Module]:
    """Trained heads by their number of Gaussians, 0 being the candidate-only model."""
    alone = _Prior(task)
    _train(alone, task, fold, head.training, lr=_PRIOR_LR, seed=seed)
    found: dict[int, nn.Module] = {0: alone}
    for components in head.components:
        rng = keyed_generator(seed, "density", str(components))
        found[components] = _Mixture(alone, _regressions(task, fold.fit, components, rng))
        _train(found[components], task, fold, head.training, lr=head.lr, seed=seed)
    return found


@dataclass(frozen=True)
class _Task:
    """What the head learns from in one fold; float32.

    Attributes:
        inputs: [question, feature].
        places: [class, axis] of the embeddings.
        seen: [class] mass in the questions learnt from.
        own: [entry] what the question's own group has in `seen`; 0 for questions not learnt from.
    """

    target: OpenTarget
    inputs: Tensor
    places: Tensor
    seen: Tensor
    own: Tensor

    @classmethod
    def of(cls, target: OpenTarget, fold: Fold, group: Sequence[str], inputs: Tensor, places: Tensor) -> _Task:
        C, learnt = len(target.classes), np.zeros(len(target), dtype=bool)
        learnt[fold.fit] = True
        mass = np.where(learnt[target.question], target.mass, 0.0)
        _, code = np.unique(np.asarray(group), return_inverse=True)
        _, pair = np.unique(code[target.question] * C + target.column, return_inverse=True)
        seen = np.bincount(target.column, mass, C)
        tensors = (torch.as_tensor(values, dtype=torch.float32) for values in (seen, np.bincount(pair, mass)[pair]))
        return cls(target, inputs, places, *tensors)

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(entry, its place among the rows, its class) of some questions."""
        picked = rows.numpy()
        at = self.target.entries(picked)
        place = np.repeat(np.arange(len(picked)), np.diff(self.target.starts)[picked])
        return torch.as_tensor(at), torch.as_tensor(place), torch.as_tensor(self.target.column[at])

    def loss(self, network: nn.Module, rows: Tensor) -> Tensor:
        """Cross-entropy [row], nats."""
        at, place, column = self.entries(rows)
        logs = torch.log_softmax(network(rows, at, place, column), 1)[place, column]
        mass = torch.as_tensor(self.target.mass[at.numpy()], dtype=torch.float32)
        return torch.zeros(len(rows)).index_add(0, place, -mass * logs)

    def mean_loss(self, network: nn.Module, rows: np.ndarray) -> float:
        return -float((self.target.mass[self.target.entries(rows)] * self.log_q(network, rows)).sum()) / len(rows)

    @torch.inference_mode()
    def log_q(self, network: nn.Module, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities of the classes of some questions, entry after entry."""
        found = []
        for part in torch.as_tensor(rows).split(64):
            at, place, column = self.entries(part)
            found.append(torch.log_softmax(network(part, at, place, column), 1)[place, column])
        return torch.cat(found).double().numpy()


class _Prior(nn.Module):
    """The candidate-only model: a·log(m_c + τ / C)."""

    def __init__(self, task: _Task) -> None:
        super().__init__()
        self.task = task
        self.exponent = nn.Parameter(torch.ones(1))
        self.log_pseudo = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor, at: Tensor, place: Tensor, column: Tensor) -> Tensor:
        """Logits [row, class]."""
        everywhere = self._logs(self.task.seen)
        without = self._logs((self.task.seen[column] - self.task.own[at]).clamp(min=0))
        logits = everywhere.expand(len(rows), -1)
        return logits.index_put((place, column), without - everywhere[column], accumulate=True)

    def _logs(self, mass: Tensor) -> Tensor:
        return self.exponent * (mass + self.log_pseudo.exp() / len(self.task.seen)).log()


class _Mixture(nn.Module):
    """The prior times a mixture of Gaussians, at first that of `_regressions`."""

    def __init__(self, prior: _Prior, start: _Regressions) -> None:
        super().__init__()
        self.task, self.prior, self.components = prior.task, _Prior(prior.task), len(start.weight)
        self.prior.load_state_dict(prior.state_dict())
        shape = torch.cat([start.weight.log(), start.variance.log() / 2])
        self.mean = nn.Parameter(start.intercept.flatten().float())  # [component · axis]
        self.mean_weight = nn.Parameter(start.slope.permute(1, 0, 2).flatten(1).float())
        self.shape = nn.Parameter(shape.float())
        self.shape_weight = nn.Parameter(torch.zeros(len(self.mean_weight), len(shape)))

    def forward(self, rows: Tensor, at: Tensor, place: Tensor, column: Tensor) -> Tensor:
        inputs, places = self.task.inputs[rows], self.task.places  # [row, feature], [class, axis]
        mean = (inputs @ self.mean_weight + self.mean).view(-1, places.shape[1])  # [row · component, axis]
        log_weight, log_scale = (inputs @ self.shape_weight + self.shape).split(self.components, dim=1)
        log_scale = log_scale.clamp(-3.5, 3)
        squares = mean.square().sum(1, keepdim=True) - 2 * mean @ places.T + places.square().sum(1)
        squares = squares.view(len(rows), self.components, -1)  # [row, component, class]
        heights = torch.log_softmax(log_weight, 1) - places.shape[1] * log_scale
        log_density = heights[..., None] - squares / (2 * (2 * log_scale).exp()[..., None])
        return torch.logsumexp(log_density, 1) + self.prior(rows, at, place, column)


@dataclass(frozen=True)
class _Regressions:
    """A mixture of linear regressions; float64.

    Attributes:
        slope: [component, feature, axis].
        intercept: [component, axis].
        variance, weight: [component].
        fit: mean log-density of an answer, nats.
    """

    slope: Tensor
    intercept: Tensor
    variance: Tensor
    weight: Tensor
    fit: float


def _regressions(task: _Task, rows: np.ndarray, components: int, rng: np.random.Generator) -> _Regressions:
    """The likeliest of several mixtures for the answers of some questions."""
    at, place, column = task.entries(torch.as_tensor(rows))
    inputs, answers = task.inputs[rows].double()[place], task.places[column].double()  # [entry, feature], [entry, axis]
    mass = torch.as_tensor(task.target.mass[at.numpy()])
    starts = 1 if components == 1 else _STARTS
    shared = [torch.as_tensor(rng.dirichlet(np.full(components, _UNEVEN), len(mass))) for _ in range(starts)]
    return max((_expect_and_maximise(inputs, answers, mass, own) for own in shared), key=lambda found: found.fit)


def _expect_and_maximise(inputs: Tensor, answers: Tensor, mass: Tensor, own: Tensor) -> _Regressions:
    """From responsibilities [entry, component]; slopes have standard normal priors.

    Args:
        inputs, answers: [entry, feature] and [entry, axis].
        mass: [entry], sums to 1 over a question.
    """
    extended = torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
    axes, ridge = answers.shape[1], torch.eye(extended.shape[1]).double()
    ridge[-1, -1] = 1e-6
    variance, found = torch.ones(own.shape[1]).double(), None
    for _ in range(_ROUNDS):
        weighted = mass[:, None] * own
        weight = weighted.sum(0).clamp(min=1e-9)
        products = torch.einsum("nj,np,nq->jpq", weighted, extended, extended) + variance[:, None, None] * ridge
        theta = torch.linalg.solve(products, torch.einsum("nj,np,na->jpa", weighted, extended, answers))
        squares = (answers - extended @ theta).square().sum(2).T  # [entry, component]
        variance = ((weighted * squares).sum(0) / (axes * weight)).clamp(min=_NARROW)
        logs = weight.log() - axes / 2 * (2 * np.pi * variance).log() - squares / (2 * variance)
        log_density = torch.logsumexp(logs, 1)
        own, fit = (logs - log_density[:, None]).exp(), float(mass @ log_density / mass.sum())
        gained = np.inf if found is None else fit - found.fit
        found = _Regressions(theta[:, :-1], theta[:, -1], variance, weight / weight.sum(), fit)
        if gained < _ENOUGH:
            break
    assert found is not None
    return found


def _train(network: nn.Module, task: _Task, fold: Fold, training: Training, *, lr: float, seed: int) -> None:
    parts = torch.as_tensor(fold.fit), torch.as_tensor(fold.validation)
    train_until_worse(network, lambda rows: task.loss(network, rows), *parts, training, lr=lr, seed=seed)


def _inputs(states: Tensor, fitted: np.ndarray, features: int) -> Tensor:
    """[question, feature] float32: activations standardised and rotated on the rows fitted, the longest axes, of mean
    square 1 together."""
    rotation = rotate(states[fitted][None].double(), standardise=True)
    order = torch.argsort(rotation.spectrum[0], descending=True)[:features]
    scale = (rotation.spectrum[0, order].mean() / len(fitted)).sqrt().clamp(min=1e-12)
    return (rotation.transform(states[None].double())[0][:, order] / scale).float()


def _on_principal_axes(embeddings: Tensor, axes: int) -> Tensor:
    """[class, axis] float32, of mean square 1 together."""
    centred = embeddings.double() - embeddings.double().mean(0)
    left, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    places = (left * lengths)[:, :axes]
    return (places / places.square().mean().sqrt().clamp(min=1e-12)).float()
