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
from probes.rungs.bilinear import Observed, Shares, class_axes, fit_candidates
from probes.rungs.registry import PENALTIES
from probes.rungs.rung import check_activations
from probes.solver.rotation import rotate
from probes.solver.training import Training, named, train_until_worse
from probes.targets.open import OpenTarget
from semcal.sampling.exponential import log_sum_exp
from semcal.seeds import keyed_generator

_STARTS, _ROUNDS = 4, 30  # of expectation-maximisation
_UNEVEN = 0.3  # of the Dirichlet that a start shares answers among Gaussians by
_ENOUGH = 1e-3  # nats per question, by which a round has to gain
_NARROW = 1e-3  # σ² at least, where the classes have mean square 1


@dataclass(frozen=True)
class DensityHead:
    """q(c | x) ∝ exp(s bᵀe_c) · w_c^a · Σ_j w_j(x) N(e_c; μ_j(x), σ_j(x)² I) over all classes c that anyone may give,
    μ, log σ and log w linear in the activation x.

    e_c is the embedding of the text of c on the leading principal axes of all classes. What stands before the mixture
    is the candidate-only model of the bilinear probe (`probes.rungs.bilinear`), on axes of its own; a and s, at first
    those of that model and 1, are learnt. The sum over classes is that of the bilinear probe as well, and a question is
    fitted as if its part of the groups were not among those that w was counted on.

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
        log_q: [entry] log-probabilities of each question's own classes.
        log_prior: [entry] likewise by the candidate-only model, of the same training questions.
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

    In each fold the head is fitted to one part of the training groups (`Fold.fit`) and stopped by the other; unlike a
    linear or a bilinear probe it is not fitted to both in the end.

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
    places, texts = _on_principal_axes(torch.as_tensor(embeddings), head.axes), class_axes(embeddings)
    log_q, log_prior, chosen = np.empty(len(target.mass)), np.empty(len(target.mass)), []
    for number, fold in enumerate(nested_folds(group, folds, Seeds.of(seed).folds), start=1):
        inputs = _inputs(torch.as_tensor(states), fold.fit, head.features)
        task, prior = _Task(target, inputs, places), _Prior.of(target, fold, group, texts)
        with named(f"fold {number} of {folds}"):
            tried = _heads(task, prior, fold, head, seed)
        alone = tried[0]
        best = min(tried, key=lambda components: task.mean_loss(tried[components], fold.validation))
        entries = target.entries(fold.test)
        log_q[entries], log_prior[entries] = (task.log_q(network, fold.test) for network in (tried[best], alone))
        chosen.append(best)
    return DensityPrediction(log_q, log_prior, tuple(chosen))


def _heads(task: _Task, prior: _Prior, fold: Fold, head: DensityHead, seed: int) -> dict[int, _Network]:
    """Trained heads by their number of Gaussians, 0 being the candidate-only model."""
    found: dict[int, _Network] = {0: _Network(prior)}
    for components in head.components:
        rng = keyed_generator(seed, "density", str(components))
        found[components] = _Mixture(prior, _regressions(task, fold.fit, components, rng))
        _train(found[components], task, fold, head.training, lr=head.lr, seed=seed)
    return found


@dataclass(frozen=True)
class _Task:
    """What the head learns from in one fold; float32.

    Attributes:
        inputs: [question, feature].
        places: [class, axis] of the embeddings.
    """

    target: OpenTarget
    inputs: Tensor
    places: Tensor

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(entry, its place among the rows, its class) of some questions."""
        picked = rows.numpy()
        at = self.target.entries(picked)
        place = np.repeat(np.arange(len(picked)), np.diff(self.target.starts)[picked])
        return torch.as_tensor(at), torch.as_tensor(place), torch.as_tensor(self.target.column[at])

    def logs(self, network: _Network, rows: Tensor) -> Tensor:
        """Log-probabilities of the classes of some questions, entry after entry."""
        _, place, column = self.entries(rows)
        prior, density = network.prior, network.log_density(self, rows)  # [row, class]
        own = density[place, column] + prior.of_entries(rows, place, column)
        given = prior.given(rows, place, column)
        log_total = log_sum_exp(density + prior.of_classes(rows))
        top = torch.maximum(log_total, own.new_full((len(rows),), -torch.inf).scatter_reduce(0, place, own, "amax"))
        new = torch.where(given, 0.0, (own - top.detach()[place]).exp())
        terms = (log_total - top.detach()).exp().index_add(0, place, new)
        return own - (terms.log() + top.detach())[place]

    def loss(self, network: _Network, rows: Tensor) -> Tensor:
        """Cross-entropy [row], nats."""
        at, place, _ = self.entries(rows)
        mass = torch.as_tensor(self.target.mass[at.numpy()], dtype=torch.float32)
        return torch.zeros(len(rows)).index_add(0, place, -mass * self.logs(network, rows))

    def mean_loss(self, network: _Network, rows: np.ndarray) -> float:
        return -float((self.target.mass[self.target.entries(rows)] * self.log_q(network, rows)).sum()) / len(rows)

    @torch.inference_mode()
    def log_q(self, network: _Network, rows: np.ndarray) -> np.ndarray:
        """As `logs`, in parts and without gradients."""
        return torch.cat([self.logs(network, part) for part in torch.as_tensor(rows).split(64)]).double().numpy()


class _Prior(nn.Module):
    """The candidate-only model: s·bᵀe_c + a·log w_c.

    Args:
        fit: bᵀe_c, [class].
        trust: a.
        shares: of the classes in the questions learnt from.
        part: [question] which of its rows is a question's.
    """

    def __init__(self, fit: Tensor, trust: float, shares: Shares, part: Tensor) -> None:
        super().__init__()
        self.fit, self.shares, self.part = fit, shares, part
        self.trust = nn.Parameter(torch.tensor([trust]))
        self.scale = nn.Parameter(torch.ones(1))

    @classmethod
    def of(cls, target: OpenTarget, fold: Fold, group: Sequence[str], embedding: Tensor) -> _Prior:
        """Learnt from `fold.fit`; its ridge is chosen on `fold.validation`. embedding: [class, axis]."""
        shares = Shares.left_out(target, fold.fit, group, seed=0)
        fit = Observed.of(target, fold.fit, embedding, shares)
        validation = Observed.of(target, fold.validation, embedding, shares.of_all(len(fold.validation)))
        model, _ = fit_candidates(fit, validation, fit, PENALTIES)
        part = torch.full((len(target),), len(shares.log_share) - 1)
        part[torch.as_tensor(fold.fit)] = torch.as_tensor(shares.part)
        return cls(embedding @ model.preference, model.trust, shares, part)

    def copy(self) -> _Prior:
        return _Prior(self.fit, self.trust.item(), self.shares, self.part)

    def of_classes(self, rows: Tensor) -> Tensor:
        """[row, class]; about −∞ for a class that is not a term of every question's sum."""
        return self.scale * self.fit + self.shares.log_weight(self.trust)[0][self.part[rows]]

    def of_entries(self, rows: Tensor, place: Tensor, column: Tensor) -> Tensor:
        """[entry]"""
        return self.scale * self.fit[column] + self.trust * self.shares.log_share[self.part[rows][place], column]

    def given(self, rows: Tensor, place: Tensor, column: Tensor) -> Tensor:
        """[entry] whether the class is a term of every question's sum."""
        return self.shares.given[self.part[rows][place], column]


class _Network(nn.Module):
    """The prior alone."""

    def __init__(self, prior: _Prior) -> None:
        super().__init__()
        self.prior = prior

    def log_density(self, task: _Task, rows: Tensor) -> Tensor:
        """[row, class], nats."""
        return torch.zeros(len(rows), len(task.places))


class _Mixture(_Network):
    """The prior times a mixture of Gaussians, at first that of `_regressions`."""

    def __init__(self, prior: _Prior, start: _Regressions) -> None:
        super().__init__(prior.copy())
        self.components = len(start.weight)
        shape = torch.cat([start.weight.log(), start.variance.log() / 2])
        self.mean = nn.Parameter(start.intercept.flatten().float())  # [component · axis]
        self.mean_weight = nn.Parameter(start.slope.permute(1, 0, 2).flatten(1).float())
        self.shape = nn.Parameter(shape.float())
        self.shape_weight = nn.Parameter(torch.zeros(len(self.mean_weight), len(shape)))

    def log_density(self, task: _Task, rows: Tensor) -> Tensor:
        inputs, places = task.inputs[rows], task.places  # [row, feature], [class, axis]
        mean = (inputs @ self.mean_weight + self.mean).view(-1, places.shape[1])  # [row · component, axis]
        log_weight, log_scale = (inputs @ self.shape_weight + self.shape).split(self.components, dim=1)
        log_scale = log_scale.clamp(-3.5, 3)
        squares = mean.square().sum(1, keepdim=True) - 2 * mean @ places.T + places.square().sum(1)
        squares = squares.view(len(rows), self.components, -1)  # [row, component, class]
        heights = torch.log_softmax(log_weight, 1) - places.shape[1] * log_scale
        log_density = heights[..., None] - squares / (2 * (2 * log_scale).exp()[..., None])
        return torch.logsumexp(log_density, 1)


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


def _train(network: _Network, task: _Task, fold: Fold, training: Training, *, lr: float, seed: int) -> None:
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
