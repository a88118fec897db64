"""A probe for open vocabularies: classes are scored through embeddings of their texts.

    p(c | x) ∝ exp(hᵀ W e_c + bᵀ e_c + a · log m_c)        over the classes c of the run

h are activations on the axes of the training rows (`rotate`), e_c the embedding of the class's text (`class_axes`), and
m_c the class's share of the training questions' mass. Every sum runs over all classes, in fitting as in scoring; it is
made in blocks of questions. (A sample of the other classes was tried: at 1,000 of 20,000 it costs 0.15 nats of KL on
planted worlds, because the large terms of a question's sum lie near its own classes, and the sample has hardly any.)

The vocabulary is that of the run, held-out questions included (the probe is transductive). So q is a distribution over
the answers that were given to some question, and a held-out question's own answers are among them, unmarked: nothing
tells to which question a class belongs. That leaks nothing which the candidate-only model (W = 0) does not have
equally, and gains are counted against it; but both are asked a little less than to name an answer that nobody gave.

Knows embeddings, activations on axes and masses; nothing of texts, models, layers or folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from probes.solver.minimise import lbfgs
from probes.targets.open import OpenTarget
from semcal.arrays import FloatArray, IntArray
from semcal.seeds import keyed_generator

AXES = 128  # of class embeddings at most, and so the rank of W
_SPREAD = 10.0  # summed variance of the axes, which makes the penalties of linear probes fit
_PARTS = 10  # of the training questions, each of which gets its class shares from the others
_LOGITS = 2**22  # [question, class] that are in memory together
_COVARIANCE = 128  # questions that the curvature is estimated on
_ROUGH, _FINE = 3e-4, 3e-5  # nats still to be gained when a solver stops: to compare penalties, and in the end
_STEPS = 100
_ROUNDS = 2  # of adapting the prior to W
_FLOOR = 1e-3  # of the prior variance of an axis, relative to the largest
_LIGHTER = (1.0, 0.3, 0.1, 0.03, 0.01)  # penalties that an adapted prior is tried with, relative to the last choice


def class_axes(features: FloatArray, most: int = AXES) -> Tensor:
    """Embeddings of the run's classes on their leading principal axes: [class, axis] float32.

    Every feature is standardised over the classes; those that do not vary drop out. The axes keep their relative
    lengths, which says a priori that probes look for directions in which classes differ most.

    Args:
        features: [class, feature], e.g. of `class_features`.
        most: axes at most.

    Raises:
        ValueError: fewer than two classes, a number that is not finite, or classes that are all the same.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are {features.shape}; expected [class, feature] of at least 2 classes")
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(1)))
        raise ValueError(f"the embedding of class {row} is not finite; embed its text with another encoder")
    X = torch.as_tensor(features, dtype=torch.float64)
    deviation = X.std(0, correction=0)
    X = X[:, deviation > 1e-6 * X.square().mean(0).sqrt()]
    if not X.shape[1]:
        raise ValueError("all classes have the same embedding; embed their texts with another encoder")
    X = (X - X.mean(0)) / X.std(0, correction=0)
    variances, axes = torch.linalg.eigh(X.mT @ X / len(X))
    kept = torch.arange(len(variances) - 1, -1, -1)[:most]
    kept = kept[variances[kept] > 1e-9 * variances[-1]]
    # The sign of an axis is arbitrary, and would differ between machines.
    axes = axes[:, kept] * torch.where(axes[:, kept].sum(0) < 0, -1.0, 1.0)
    return (X @ axes * (_SPREAD / variances[kept].sum()).sqrt()).float()


@dataclass(frozen=True)
class Shares:
    """The share of each class in the mass of some questions, the training ones.

    Attributes:
        log_share: [part, class]. Questions that are learnt from get it from questions of other groups, as held-out
            ones do, or the model would learn that a question's own classes are never new.
        part: [question], the row of `log_share` that is each question's.
        novel: share of a question's mass that is on classes which the others do not have. Spread evenly over those.
    """

    log_share: Tensor
    part: IntArray
    novel: float

    @classmethod
    def left_out(cls, target: OpenTarget, rows: IntArray, group: Sequence[str], seed: int) -> Self:
        """For the questions `rows` themselves, groups of which are left out in turn."""
        names = sorted({str(group[row]) for row in rows})
        order = keyed_generator(seed, "class shares").permutation(len(names))
        part_of = {names[at]: rank % _PARTS for rank, at in enumerate(order)}
        part = np.array([part_of[str(group[row])] for row in rows])
        parts = int(part.max()) + 1
        own = np.stack([_mass(target, rows[part == one]) for one in range(parts)])
        others = own.sum(0) - own
        others[others < 1e-9] = 0.0  # rounding
        # Good and Turing's estimate (Good 1953), by questions instead of draws.
        novel = float((own * (others == 0)).sum() / len(rows)) if parts > 1 else 0.5
        novel = float(np.clip(novel, 1 / (len(rows) + 1), len(rows) / (len(rows) + 1)))
        log_share = np.stack([_log_share(one, novel) for one in others])
        return cls(torch.as_tensor(log_share, dtype=torch.float32), part, novel)

    def of_all(self, target: OpenTarget, rows: IntArray, held_out: int) -> Shares:
        """For so many held-out questions, from all the questions `rows` that these shares were made for."""
        log_share = _log_share(_mass(target, rows), self.novel)[None]
        return Shares(torch.as_tensor(log_share, dtype=torch.float32), np.zeros(held_out, dtype=np.int64), self.novel)


def _mass(target: OpenTarget, rows: IntArray) -> FloatArray:
    """[class], summed over questions."""
    entries = target.entries(rows)
    return np.bincount(target.column[entries], target.mass[entries], len(target.classes)).astype(np.float64)


def _log_share(mass: FloatArray, novel: float) -> FloatArray:
    """[class]; classes without mass share what is `novel`."""
    seen = mass > 0
    if not seen.any():
        return np.full(len(mass), -np.log(len(mass)))
    if seen.all():
        return np.log(mass / mass.sum())
    return np.log(np.where(seen, (1 - novel) * mass / mass.sum(), novel / (~seen).sum()))


@dataclass(frozen=True)
class Observed:
    """What some questions answered, as far as the solver needs it, whatever the layer.

    Attributes:
        embedding: [class, axis].
        shares: of the classes, for each question.
        mean: [question, axis], mean embedding of a question's classes by their mass.
        mean_log_share: [question].
        weight: [question], sums to 1.
    """

    embedding: Tensor
    shares: Shares
    mean: Tensor
    mean_log_share: Tensor
    weight: Tensor

    @classmethod
    def of(cls, target: OpenTarget, rows: IntArray, embedding: Tensor, shares: Shares) -> Observed:
        """Of the questions `rows`."""
        entries = target.entries(rows)
        question = torch.as_tensor(np.repeat(np.arange(len(rows)), np.diff(target.starts)[rows]))
        column = torch.as_tensor(target.column[entries])
        mass = torch.as_tensor(target.mass[entries], dtype=torch.float32)
        weighted = torch.sparse_coo_tensor(
            torch.stack([question, column]), mass, (len(rows), len(embedding)), check_invariants=False
        )
        log_share = shares.log_share[torch.as_tensor(shares.part)[question], column]
        return cls(
            embedding,
            shares,
            torch.sparse.mm(weighted, embedding.cpu()).to(embedding.device),
            torch.zeros(len(rows)).index_add_(0, question, mass * log_share).to(embedding.device),
            torch.full((len(rows),), 1 / len(rows), device=embedding.device),
        )

    def __len__(self) -> int:
        return len(self.mean)

    def pooled(self) -> Observed:
        """A question for each part, which is all that a model without activations can tell apart."""
        part = torch.as_tensor(self.shares.part)
        count = torch.bincount(part).to(self.mean)
        mean = (
            torch.zeros(len(count), self.mean.shape[1])
            .to(self.mean)
            .index_add_(0, part.to(self.mean.device), self.mean)
        )
        log_share = torch.zeros(len(count)).to(self.mean).index_add_(0, part.to(self.mean.device), self.mean_log_share)
        shares = replace(self.shares, part=np.arange(len(count)))
        return Observed(self.embedding, shares, mean / count[:, None], log_share / count, count / count.sum())

    def on(self, axes: Tensor) -> Observed:
        """With embeddings multiplied by [axis, axis]."""
        return replace(self, embedding=self.embedding @ axes, mean=self.mean @ axes)

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """(questions, their log shares [question, class], or [1, class] where all have the same)."""
        part, shares = torch.as_tensor(self.shares.part), self.shares.log_share.to(self.embedding)
        if len(part) * len(self.embedding) <= _LOGITS:
            return [(torch.arange(len(part)), shares[part] if len(shares) > 1 else shares)]
        step, found = max(1, _LOGITS // len(self.embedding)), []
        for one in range(len(shares)):
            rows = (part == one).nonzero()[:, 0]
            found += [(some, shares[one : one + 1]) for some in rows.split(step)]
        return found


@dataclass(frozen=True)
class Bilinear:
    """A fitted model.

    Attributes:
        interaction: [activation axis, axis], W; no rows for the candidate-only model.
        preference: [axis], b.
        trust: a.
        penalty: λ that W was fitted with; infinite where W = 0 did best, 0 where there is none.
        bias_penalty: that of b and a, which are drawn to `origin`.
        origin: (b, a) of the candidate-only model; for that one itself (0, 1), the class shares as they are.
        axes: [axis, axis]; the ridge is on W multiplied by the transposed inverse of it. A prior that favours a few
            axes, adapted to W, makes W nearly of low rank.
    """

    interaction: Tensor
    preference: Tensor
    trust: float
    penalty: float
    bias_penalty: float
    origin: tuple[Tensor, float]
    axes: Tensor

    def directions(self, scores: Tensor) -> Tensor:
        """[question, axis], what a question looks for in an embedding: W ᵀh + b."""
        if not len(self.interaction):
            return self.preference.expand(len(scores), -1)
        return scores @ self.interaction + self.preference

    def log_total(self, scores: Tensor, observed: Observed) -> Tensor:
        """[question], logarithm of the sum over all classes, float64."""
        directions, total = self.directions(scores), torch.empty(len(observed), dtype=torch.float64)
        for rows, log_share in observed.blocks():
            logits = torch.addmm(self.trust * log_share, directions[rows], observed.embedding.mT)
            total[rows] = logits.logsumexp(1).double().cpu()
        return total

    def answers(self, scores: Tensor, observed: Observed) -> tuple[Tensor, Tensor]:
        """The likeliest class of each question, [question], and its log-probability, [question] float64."""
        directions = self.directions(scores)
        column, log_q = torch.empty(len(observed), dtype=torch.long), torch.empty(len(observed), dtype=torch.float64)
        for rows, log_share in observed.blocks():
            logits = torch.addmm(self.trust * log_share, directions[rows], observed.embedding.mT)
            top = logits.max(1)
            column[rows] = top.indices.cpu()
            log_q[rows] = (top.values - logits.logsumexp(1)).double().cpu()
        return column, log_q

    def cross_entropy(self, scores: Tensor, observed: Observed) -> float:
        """Mean over questions, nats."""
        fit = (self.directions(scores) * observed.mean).sum(1) + self.trust * observed.mean_log_share
        return float((observed.weight.cpu().double() * (self.log_total(scores, observed) - fit.double().cpu())).sum())


def fit_candidates(
    fit: Observed, validation: Observed, train: Observed, penalties: Sequence[float]
) -> tuple[Bilinear, Bilinear]:
    """The candidate-only model, p(c) ∝ exp(bᵀ e_c + a · log m_c): (of `fit`, of `train`).

    Its ridge, which draws it to p(c) = m_c, does best on `validation`, from the heaviest down until two in a row do
    worse.
    """
    k, pooled = fit.embedding.shape[1], fit.pooled()
    none = fit.mean.new_zeros(len(pooled), 0)
    b = fit.mean.new_zeros(k)
    start = Bilinear(fit.mean.new_zeros(0, k), b, 1.0, 0.0, np.inf, (b, 1.0), torch.eye(k).to(fit.mean))
    best, chosen, misses = np.inf, start, 0
    for penalty in sorted(penalties, reverse=True):
        start = _solve(none, pooled, replace(start, bias_penalty=penalty), len(fit), _FINE)
        loss = start.cross_entropy(none[:1], validation.pooled())
        if loss < best:
            best, chosen, misses = loss, start, 0
        elif (misses := misses + 1) == 2:
            break
    pooled = train.pooled()
    return chosen, _solve(fit.mean.new_zeros(len(pooled), 0), pooled, chosen, len(train), _FINE)


def choose_bilinear(
    fit: tuple[Tensor, Observed],
    validation: tuple[Tensor, Observed],
    candidates: Bilinear,
    penalties: Sequence[float],
) -> Bilinear:
    """The model with the ridge and the prior that do best on `validation`, fitted to `fit`, pairs of activations on
    axes [question, r] and what was answered.

    First a plain ridge on W and on what b and a differ from the candidate-only model, from the heaviest down until two
    in a row do worse, each solution the start of the next. Then the axes of embeddings are turned to the singular
    vectors of W, with prior variances in proportion to its squared singular values, and the ridge is chosen again;
    twice, as long as it helps. (Log-determinants are minimised by reweighting: Fazel, Hindi & Boyd 2003. On planted
    worlds of rank 8 this leaves a quarter to a half of the KL that the ridge leaves.) Where no ridge beats the
    candidate-only model, that model is returned with W = 0.
    """
    scores, observed = fit
    width = scores.shape[1]
    start = replace(
        candidates,
        interaction=scores.new_zeros(width, len(candidates.preference)),
        origin=(candidates.preference, candidates.trust),
    )
    best, chosen = candidates.cross_entropy(*validation), replace(start, penalty=np.inf)
    for patience in (2, *[1] * _ROUNDS):
        found, loss = _path(scores, observed, validation, start, sorted(penalties, reverse=True), patience)
        if not loss < best:
            break
        best, chosen = loss, found
        start = replace(found, axes=_adapted(found.interaction))
        penalties = [found.penalty * lighter for lighter in _LIGHTER]
    return chosen


def refit(chosen: Bilinear, candidates: Bilinear, scores: Tensor, observed: Observed) -> Bilinear:
    """The chosen model fitted to more questions, those of `candidates`."""
    if np.isinf(chosen.penalty):
        return replace(candidates, interaction=chosen.interaction, penalty=np.inf)
    origin = (candidates.preference, candidates.trust)
    return _solve(scores, observed, replace(chosen, origin=origin), len(observed), _FINE)


def _path(
    scores: Tensor,
    observed: Observed,
    validation: tuple[Tensor, Observed],
    start: Bilinear,
    penalties: Sequence[float],
    patience: int,
) -> tuple[Bilinear, float]:
    """The best model of a path of penalties, which ends after `patience` in a row that do worse, and its loss."""
    best, chosen, misses = np.inf, start, 0
    for penalty in penalties:
        start = _solve(scores, observed, replace(start, penalty=penalty, bias_penalty=penalty), len(observed), _ROUGH)
        loss = start.cross_entropy(*validation)
        if loss < best:
            best, chosen, misses = loss, start, 0
        elif (misses := misses + 1) == patience:
            break
    return chosen, best


def _adapted(interaction: Tensor) -> Tensor:
    """[axis, axis] `Bilinear.axes` for the singular vectors of W; those of no preference where W is 0, as it stays on
    activations that are the same for all questions."""
    if not interaction.any():
        return torch.eye(interaction.shape[1]).to(interaction)
    _, values, vectors = torch.linalg.svd(interaction.double(), full_matrices=False)
    if len(vectors) < interaction.shape[1]:  # the axes that W does not use
        vectors = torch.linalg.svd(vectors, full_matrices=True)[2].index_copy(0, torch.arange(len(vectors)), vectors)
    variances = vectors.new_full((len(vectors),), _FLOOR)
    variances[: len(values)] += (values / values[0]).square()
    return (vectors.mT * variances.sqrt()).to(interaction)


def _solve(scores: Tensor, observed: Observed, start: Bilinear, n: int, tol: float) -> Bilinear:
    """The model of the penalties and axes of `start`, from where it is; `n` questions weigh against the penalties.

    Embeddings are turned further, to the axes of their mean covariance under the model that is started from. There
    and on the axes of h the Hessian is nearly diagonal.
    """
    device = observed.mean.device
    covariance, share_variance = _covariance(scores, observed, start)
    turn = torch.linalg.eigh(start.axes.mT.double() @ covariance @ start.axes.double())[1]
    axes = (start.axes.double() @ turn).to(observed.mean)
    back = torch.linalg.inv(axes.double()).mT.to(observed.mean)  # base axes -> these
    seen = observed.on(axes)
    curvature = (axes.mT.double() @ covariance @ axes.double()).diag().clamp(min=1e-9).to(observed.mean)
    spectrum = (observed.weight[:, None] * scores.square()).sum(0)
    metric = axes.mT @ axes
    inverse = torch.cat(
        [
            1 / (spectrum[:, None] * curvature + start.penalty / n),
            1 / (curvature + start.bias_penalty / n * metric.diag())[None],
            torch.zeros(1, len(curvature), device=device),
        ]
    )
    inverse[:-2].masked_fill_((spectrum <= 0)[:, None], 0.0)
    inverse[-1, 0] = 1 / (share_variance + start.bias_penalty / n)
    theta = torch.cat(
        [start.interaction @ back, (start.preference @ back)[None], torch.zeros(1, len(curvature)).to(back)]
    )
    theta[-1, 0] = start.trust
    origin = (start.origin[0] @ back, start.origin[1])
    problem = _Objective(scores, seen, seen.blocks(), metric, origin, (start.penalty / n, start.bias_penalty / n))
    found = lbfgs(problem, theta[None], inverse[None], max_iter=_STEPS, tol=tol).theta[0]
    return replace(
        start,
        interaction=found[:-2] @ axes.mT,
        preference=found[-2] @ axes.mT,
        trust=float(found[-1, 0]),
    )


@dataclass(frozen=True)
class _Objective:
    """Mean cross-entropy + (λ‖W‖² + λ_b (‖b − b₀‖² + (a − a₀)²)) / 2n, of one model; theta is [1, r + 2, axis] with b
    and a in the last rows."""

    scores: Tensor
    observed: Observed
    blocks: list[tuple[Tensor, Tensor]]
    metric: Tensor  # [axis, axis], of b
    origin: tuple[Tensor, float]  # b₀, a₀
    ridges: tuple[float, float]  # λ / n, λ_b / n

    def take(self, index: Tensor) -> Self:  # noqa: ARG002 - there is one
        return self

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        W, b, trust = theta[0, :-2], theta[0, -2], float(theta[0, -1, 0])
        ridge, bias_ridge = self.ridges
        off, trust_off = b - self.origin[0], trust - self.origin[1]
        seen = self.observed
        directions = self.scores @ W + b
        pull = -seen.mean  # [question, axis], E_q[e] − mean
        value = -(seen.weight.double() @ ((directions * seen.mean).sum(1) + trust * seen.mean_log_share).double())
        trust_pull = -(seen.weight @ seen.mean_log_share)
        for rows, log_share in self.blocks:
            logits = torch.addmm(trust * log_share, directions[rows], seen.embedding.mT)
            top = logits.amax(1, keepdim=True)
            q = logits.sub_(top).exp_()  # in place: at this size memory traffic is a cost
            total = q.sum(1, keepdim=True)
            weight = seen.weight[rows]
            value = value + weight.double() @ (total.log() + top)[:, 0].double()
            pull[rows] += q @ seen.embedding / total
            of_share = q @ log_share[0] if len(log_share) == 1 else (q * log_share).sum(1)
            trust_pull = trust_pull + (weight / total[:, 0]) @ of_share
        pull = pull * seen.weight[:, None]
        gradient = torch.empty_like(theta)
        gradient[0, :-2] = self.scores.mT @ pull + ridge * W
        gradient[0, -2] = pull.sum(0) + bias_ridge * off @ self.metric
        gradient[0, -1] = 0.0
        gradient[0, -1, 0] = trust_pull + bias_ridge * trust_off
        penalty = ridge * W.square().sum() + bias_ridge * (off @ self.metric @ off + trust_off**2)
        return (value + penalty.double() / 2)[None].to(theta.dtype), gradient


def _covariance(scores: Tensor, observed: Observed, model: Bilinear) -> tuple[Tensor, Tensor]:
    """Mean covariance of the embedding, [axis, axis] float64, and mean variance of the log share under the model."""
    rows = torch.arange(0, len(observed), max(1, len(observed) // _COVARIANCE))
    log_share = observed.shares.log_share[torch.as_tensor(observed.shares.part)[rows]].to(observed.mean)
    q = torch.softmax(torch.addmm(model.trust * log_share, model.directions(scores)[rows], observed.embedding.mT), 1)
    mean = (q @ observed.embedding).double()
    second = (observed.embedding * q.mean(0)[:, None]).mT @ observed.embedding
    centred = log_share - (q * log_share).sum(1, keepdim=True)
    return second.double() - mean.mT @ mean / len(rows), (q * centred.square()).sum(1).mean()
