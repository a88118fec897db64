"""A probe for open vocabularies: classes are scored through embeddings of their texts.

    p(c | x) ∝ exp(hᵀ W e_c + bᵀ e_c) · w_c^a        over all classes that anyone may give

h are activations on the axes of the training rows (`rotate`), e_c the embedding of the class's text (`class_axes`).
w_c is (1 − ν) times the class's share of the training questions' mass, or ν/N for each of the N classes that none of
them gave: ν is the mass that goes to such classes, N how many there are (`Universe`). The sum over all of them is

    Σ over classes given by training questions
    + the question's own other classes, each for itself
    + the rest of the N: their number times the mean over the classes that one training group alone gave

The last are to the others what the new classes of a question are to all: given as often, and by chance. (A class given
by one of m groups was as likely as one given by a further group and none of m.) So a prediction is made of the training
questions and of what a question answers, whatever else is held out, and q sums to about 1 over all classes that anyone
may give. The estimate of N is a lower bound, and the gap of a model that knows nothing of which new classes are
likelier is one too: where N is too small by a factor, by ν times its logarithm. For a model that knows it the classes
given once are the likelier ones by as much as N is too small: where the mean of exp(hᵀ W e_c + bᵀ e_c) over questions
is in proportion to how often c is given, the two cancel. Fitting, choosing penalties and scoring have the same sum.
A closed vocabulary (`OpenTarget.closed`) is summed over as it is. Sums are made in blocks of questions.

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
from probes.targets.open import OpenTarget, Universe
from semcal.arrays import FloatArray, IntArray
from semcal.sampling.exponential import exp_, log_sum_exp
from semcal.seeds import keyed_generator

AXES = 128  # of class embeddings at most, and so the rank of W
_SPREAD = 10.0  # summed variance of the axes, which makes the penalties of linear probes fit
_PARTS = 10  # of the training questions, each of which gets its class shares from the others
_LOGITS = 2**22  # [question, class] that are in memory together
_COVARIANCE = 128  # questions that the curvature is estimated on
_ROUGH, _FINE = 3e-4, 3e-5  # nats still to be gained when a solver stops: to compare penalties, and in the end
_STEPS = 100
_ROUNDS = 2  # of adapting the prior to W
_NEVER = -1e30  # the logarithm of nothing, where −∞ would make NaN of a derivative
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
    """What some questions, the training ones, tell of how often each class is given, and of the classes that none of
    them gave.

    A question that is learnt from gets it from questions of other groups, as held-out ones do, or the model would learn
    that a question's own classes are never new: its part of the questions is left out. The last row is of all.

    Attributes:
        log_share: [part + 1, class] of the mass; log(ν/N) for a class that was not given.
        given: [part + 1, class] whether the class has a term of its own in every sum: given by a training question, or
            a closed vocabulary.
        sample: [part + 1, class] whether it stands for the classes that were not given.
        unseen: [part + 1] N, classes that were not given.
        apart: how many of those have a term of their own, in the mean over questions.
        part: [question], the row of each question.
        novel: ν, share of a question's mass that is on classes which the others do not have.
    """

    log_share: Tensor
    given: Tensor
    sample: Tensor
    unseen: Tensor
    apart: float
    part: IntArray
    novel: float

    @classmethod
    def left_out(cls, target: OpenTarget, rows: IntArray, group: Sequence[str], seed: int) -> Self:
        """For the questions `rows` themselves; the universe is estimated from all of the target."""
        names = sorted({str(group[row]) for row in rows})
        order = keyed_generator(seed, "class shares").permutation(len(names))
        part_of = {names[at]: rank % _PARTS for rank, at in enumerate(order)}
        part = np.array([part_of[str(group[row])] for row in rows])
        parts = int(part.max()) + 1
        own = np.stack([_mass(target, rows[part == one]) for one in range(parts)])
        others = np.concatenate([own.sum(0) - own, own.sum(0)[None]])
        others[others < 1e-9] = 0.0  # rounding
        # Good and Turing's estimate (Good 1953), by questions instead of draws.
        novel = float((own * (others[:-1] == 0)).sum() / len(rows)) if parts > 1 else 0.5
        novel = float(np.clip(novel, 1 / (len(rows) + 1), len(rows) / (len(rows) + 1)))
        unseen, sample, apart = (others == 0).sum(1).astype(float), np.zeros(others.shape, dtype=bool), 0.0
        given = ~sample
        if not target.closed:
            groups = np.stack([target.groups_with(rows[part != one], group) for one in range(parts + 1)])
            given = groups > 0
            unseen = np.maximum(Universe.of(target, group).size - given.sum(1), 0.0)
            once, any_given = groups == 1, np.where(given.any(1, keepdims=True), given, given[-1])
            sample = np.where(once.any(1, keepdims=True), once, any_given)
            entries = target.entries(rows)
            new = ~given[np.repeat(part, np.diff(target.starts)[rows]), target.column[entries]]
            apart = new.sum() / len(rows)
        log_share = np.stack([_log_share(one, novel, left) for one, left in zip(others, unseen, strict=True)])
        share, left = (torch.as_tensor(values, dtype=torch.float32) for values in (log_share, unseen))
        return cls(share, torch.as_tensor(given), torch.as_tensor(sample), left, apart, part, novel)

    def of_all(self, held_out: int) -> Shares:
        """For so many held-out questions, from all the questions that these shares were made for."""
        last = {name: getattr(self, name)[-1:] for name in ("log_share", "given", "sample", "unseen")}
        return replace(self, part=np.zeros(held_out, dtype=np.int64), **last)

    def naming(self, columns: Tensor) -> Shares:
        """The same where some classes that were not given, [class], have terms of their own for every question."""
        given = self.given.clone()
        given[:, columns] = True
        return replace(self, given=given, apart=float(len(columns)))

    def to(self, device: torch.device) -> Shares:
        """On a device."""
        moved = {name: getattr(self, name).to(device) for name in ("log_share", "given", "sample", "unseen")}
        return replace(self, **moved)

    def only(self, classes: Tensor) -> Shares:
        """Of some classes, [class], which must be all that have a term in any sum."""
        return replace(self, **{name: getattr(self, name)[:, classes] for name in ("log_share", "given", "sample")})

    @property
    def log_new(self) -> Tensor:
        """[part + 1], of a class that was not given."""
        return np.log(self.novel) - self.unseen.clamp(min=1).log()

    def log_weight(self, trust: float | Tensor) -> tuple[Tensor, Tensor]:
        """[part + 1, class] logarithm of what exp(hᵀ W e_c + bᵀ e_c) is multiplied by in every question's sum: w_c^a,
        and (ν/N)^a for as many classes as c stands for; and its derivative by a. About −∞ where c has no term."""
        rest = (self.unseen - self.apart).clamp(min=0) / self.sample.sum(1).clamp(min=1)
        new, never = self.log_new[:, None], self.log_share.new_tensor(_NEVER)
        for_itself = torch.where(self.given, trust * self.log_share, never)
        for_others = torch.where(self.sample & (rest > 0)[:, None], trust * new + rest.log()[:, None], never)
        both = torch.logaddexp(for_itself, for_others)
        return both, new + (for_itself - both).exp() * (self.log_share - new)


def _mass(target: OpenTarget, rows: IntArray) -> FloatArray:
    """[class], summed over questions."""
    entries = target.entries(rows)
    return np.bincount(target.column[entries], target.mass[entries], len(target.classes)).astype(np.float64)


def _log_share(mass: FloatArray, novel: float, unseen: float) -> FloatArray:
    """[class]; so many classes without mass share what is `novel`."""
    seen = mass > 0
    if not seen.any():
        return np.full(len(mass), -np.log(max(unseen, 1.0)))
    of_seen = np.log(np.where(seen, mass, 1.0) / mass.sum())
    if not unseen:
        return of_seen
    return np.where(seen, np.log(1 - novel) + of_seen, np.log(novel / max(unseen, 1.0)))


@dataclass(frozen=True)
class Observed:
    """What some questions answered, as far as the solver needs it, whatever the layer.

    Attributes:
        embedding: [class, axis].
        shares: of the classes, for each question.
        mean: [question, axis], mean embedding of a question's classes by their mass.
        mean_log_share: [question].
        weight: [question], sums to 1.
        new: [2, new], the question and the class of each answer that no training question gave, other groups only.
        new_embedding: [new, axis], of their classes.
    """

    embedding: Tensor
    shares: Shares
    mean: Tensor
    mean_log_share: Tensor
    weight: Tensor
    new: Tensor
    new_embedding: Tensor

    @classmethod
    def of(cls, target: OpenTarget, rows: IntArray, embedding: Tensor, shares: Shares) -> Observed:
        """Of the questions `rows`."""
        entries = target.entries(rows)
        question = torch.as_tensor(np.repeat(np.arange(len(rows)), np.diff(target.starts)[rows]))
        column = torch.as_tensor(target.column[entries])
        mass = torch.as_tensor(target.mass[entries], dtype=torch.float32)
        pairs = torch.stack([question, column])
        weighted = torch.sparse_coo_tensor(pairs, mass, (len(rows), len(embedding)), check_invariants=False)
        part = torch.as_tensor(shares.part)[question]
        log_share = shares.log_share[part, column]
        new = pairs[:, ~shares.given[part, column]].to(embedding.device)
        return cls(
            embedding,
            shares.to(embedding.device),
            torch.sparse.mm(weighted, embedding.cpu()).to(embedding.device),
            torch.zeros(len(rows)).index_add_(0, question, mass * log_share).to(embedding.device),
            torch.full((len(rows),), 1 / len(rows), device=embedding.device),
            new,
            embedding[new[1]],
        )

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def part(self) -> Tensor:
        """[question]"""
        return torch.as_tensor(self.shares.part).to(self.mean.device)

    def on(self, axes: Tensor) -> Observed:
        """With embeddings multiplied by [axis, axis]."""
        return replace(self, **{name: getattr(self, name) @ axes for name in ("embedding", "mean", "new_embedding")})

    def with_terms(self) -> Observed:
        """With only the classes that have a term in some sum, besides each question's own new answers; `new` keeps the
        numbers that all classes have."""
        classes = (self.shares.given | self.shares.sample).any(0).nonzero()[:, 0]
        return replace(self, embedding=self.embedding[classes], shares=self.shares.only(classes))

    def blocks(self, *, alike: bool = False) -> list[tuple[Tensor, Tensor]]:
        """(questions, the parts [question] that they are in, or [1] where that is one). `alike`: questions of a part
        are always together, however many."""
        part = self.part
        if not alike and len(part) * len(self.embedding) <= _LOGITS:
            return [(torch.arange(len(part)), part if len(self.shares.log_share) > 1 else part[:1])]
        step, found = len(part) if alike else max(1, _LOGITS // len(self.embedding)), []
        for one in part.unique():
            found += [(some, one[None]) for some in (part == one).nonzero()[:, 0].split(step)]
        return found

    def log_new(self, directions: Tensor, trust: float) -> Tensor:
        """[new], log of the term of each new answer in its question's sum, from directions [question, axis]."""
        question = self.new[0]
        fit = (directions[question] * self.new_embedding).sum(1)
        return fit + trust * self.shares.log_new[self.part[question]]

    def with_new(self, log_total: Tensor, log_new: Tensor) -> Tensor:
        """[question], the logarithm of sums to which the terms of new answers are added."""
        question = self.new[0]
        top = log_total.scatter_reduce(0, question, log_new, "amax")
        terms = (log_total - top).exp().index_add_(0, question, (log_new - top[question]).exp())
        return terms.log() + top


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
        directions = self.directions(scores)
        given = self._log_given(directions, observed)
        return observed.with_new(given, observed.log_new(directions, self.trust)).double().cpu()

    def _log_given(self, directions: Tensor, observed: Observed) -> Tensor:
        """[question], without the terms of new answers."""
        weight, _ = observed.shares.log_weight(self.trust)
        alike, total = not len(self.interaction), directions.new_empty(len(observed))
        for rows, parts in observed.blocks(alike=alike):
            some = directions[rows[:1] if alike else rows]
            total[rows] = log_sum_exp(torch.addmm(weight[parts], some, observed.embedding.mT))
        return total

    def answers(self, scores: Tensor, observed: Observed) -> tuple[Tensor, Tensor]:
        """The likeliest class of each held-out question, [question], and its log-probability, [question] float64.

        It may be any class of the run: the new ones of all held-out questions have terms of their own in every sum
        here, so that nothing tells whose they are.
        """
        directions, shares = self.directions(scores), observed.shares.naming(observed.new[1].unique())
        column, log_q = torch.empty(len(observed), dtype=torch.long), torch.empty(len(observed), dtype=torch.float64)
        weight, _ = shares.log_weight(self.trust)
        unnamed = torch.where(shares.given, self.trust * shares.log_share, shares.log_share.new_tensor(_NEVER))
        for rows, parts in observed.blocks():
            fit = directions[rows] @ observed.embedding.mT
            top = (fit + unnamed[parts]).max(1)
            column[rows] = top.indices.cpu()
            log_q[rows] = (top.values - log_sum_exp(fit + weight[parts])).double().cpu()
        return column, log_q

    def entropies(self, scores: Tensor, observed: Observed) -> FloatArray:
        """[question], of what is predicted of held-out questions over all classes, nats; the new classes as in
        `answers`."""
        directions, shares = self.directions(scores), observed.shares.naming(observed.new[1].unique())
        weight, slope = shares.log_weight(self.trust)
        found = np.empty(len(observed))
        for rows, parts in observed.blocks():
            fit = directions[rows] @ observed.embedding.mT
            logits, log_w = (fit + weight[parts]).double(), (fit + self.trust * slope[parts]).double()
            log_total = log_sum_exp(logits)[:, None]
            found[rows.cpu().numpy()] = -(exp_(logits - log_total) * (log_w - log_total)).sum(1).cpu().numpy()
        return found

    def log_fit(self, scores: Tensor, observed: Observed) -> Tensor:
        """[question, question] mean log-probability of the classes of the first in the place of those of the second,
        under the prediction for that one; float64."""
        directions = self.directions(scores)
        total, found = self._log_given(directions, observed), []
        question, new = observed.new[0], observed.new_embedding
        own = observed.mean.double() @ directions.double().mT + self.trust * observed.mean_log_share.double()[:, None]
        for rows in torch.arange(len(observed)).split(max(1, _LOGITS // max(1, len(new)))):
            log_new = new @ directions[rows].mT + self.trust * observed.shares.log_new[0]  # [new, row]
            top = total[rows].expand(len(observed), -1)
            top = top.scatter_reduce(0, question[:, None].expand_as(log_new), log_new, "amax")
            terms = (total[rows] - top).exp().index_add_(0, question, (log_new - top[question]).exp())
            found.append(own[:, rows] - (terms.log() + top).double())
        return torch.cat(found, 1).cpu()

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
    k, b = fit.embedding.shape[1], fit.mean.new_zeros(fit.embedding.shape[1])
    start = Bilinear(fit.mean.new_zeros(0, k), b, 1.0, 0.0, np.inf, (b, 1.0), torch.eye(k).to(fit.mean))
    none, unseen, all_of = (observed.mean.new_zeros(len(observed), 0) for observed in (fit, validation, train))
    best, chosen, misses = np.inf, start, 0
    for penalty in sorted(penalties, reverse=True):
        start = _solve(none, fit, replace(start, bias_penalty=penalty), _FINE)
        loss = start.cross_entropy(unseen, validation)
        if loss < best:
            best, chosen, misses = loss, start, 0
        elif (misses := misses + 1) == 2:
            break
    return chosen, _solve(all_of, train, chosen, _FINE)


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
    return _solve(scores, observed, replace(chosen, origin=origin), _FINE)


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
        start = _solve(scores, observed, replace(start, penalty=penalty, bias_penalty=penalty), _ROUGH)
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


def _solve(scores: Tensor, observed: Observed, start: Bilinear, tol: float) -> Bilinear:
    """The model of the penalties and axes of `start`, from where it is.

    Embeddings are turned further, to the axes of their mean covariance under the model that is started from. There
    and on the axes of h the Hessian is nearly diagonal.
    """
    observed = observed.with_terms()
    device, n = observed.mean.device, len(observed)
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
    blocks = seen.blocks(alike=not scores.shape[1])
    problem = _Objective(scores, seen, blocks, metric, origin, (start.penalty / n, start.bias_penalty / n))
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
        log_weight, slope = seen.shares.log_weight(trust)
        given, mean, by_trust = (torch.empty_like(x) for x in (seen.weight, seen.mean, seen.weight))
        for rows, parts in self.blocks:  # the terms that all questions of a part have
            some = directions[rows if self.scores.shape[1] else rows[:1]]
            logits = torch.addmm(log_weight[parts], some, seen.embedding.mT)
            top = logits.amax(1, keepdim=True)
            q = exp_(logits.sub_(top))  # in place: at this size memory traffic is a cost
            total = q.sum(1, keepdim=True)
            given[rows] = (total.log() + top)[:, 0]
            mean[rows] = q @ seen.embedding / total
            by_trust[rows] = (q @ slope[parts[0]] if len(parts) == 1 else (q * slope[parts]).sum(1)) / total[:, 0]
        question = seen.new[0]
        log_new = seen.log_new(directions, trust)
        log_total = seen.with_new(given, log_new)
        q_given, q_new = (given - log_total).exp(), (log_new - log_total[question]).exp()
        pull = q_given[:, None] * mean - seen.mean  # [question, axis], E_q[e] − mean
        pull.index_add_(0, question, q_new[:, None] * seen.new_embedding)
        trust_pull = q_given * by_trust - seen.mean_log_share
        trust_pull.index_add_(0, question, q_new * seen.shares.log_new[seen.part[question]])
        fit = (directions * seen.mean).sum(1) + trust * seen.mean_log_share
        value = seen.weight.double() @ (log_total.double() - fit.double())
        pull = pull * seen.weight[:, None]
        gradient = torch.empty_like(theta)
        gradient[0, :-2] = self.scores.mT @ pull + ridge * W
        gradient[0, -2] = pull.sum(0) + bias_ridge * off @ self.metric
        gradient[0, -1] = 0.0
        gradient[0, -1, 0] = seen.weight @ trust_pull + bias_ridge * trust_off
        penalty = ridge * W.square().sum() + bias_ridge * (off @ self.metric @ off + trust_off**2)
        return (value + penalty.double() / 2)[None].to(theta.dtype), gradient


def _covariance(scores: Tensor, observed: Observed, model: Bilinear) -> tuple[Tensor, Tensor]:
    """Mean covariance of the embedding, [axis, axis] float64, and mean variance of the log share under the model."""
    rows = torch.arange(0, len(observed), max(1, len(observed) // _COVARIANCE))
    directions, embedding = model.directions(scores), observed.embedding
    log_weight, slope = (table[observed.part[rows]] for table in observed.shares.log_weight(model.trust))
    log_total = model.log_total(scores, observed).to(observed.mean)
    q = exp_(torch.addmm(log_weight, directions[rows], embedding.mT).sub_(log_total[rows, None]))
    place = torch.full((len(observed),), -1, device=rows.device).index_copy_(0, rows, torch.arange(len(rows)))
    taken = place[observed.new[0]] >= 0
    question, new = observed.new[0][taken], observed.new_embedding[taken]
    q_new = (observed.log_new(directions, model.trust)[taken] - log_total[question]).exp()
    log_new = observed.shares.log_new[observed.part[question]]
    mean = (q @ embedding).index_add_(0, place[question], q_new[:, None] * new).double()
    second = (embedding * q.mean(0)[:, None]).mT @ embedding
    second += (new * q_new[:, None]).mT @ new / len(rows)
    mean_slope = (q * slope).sum(1).index_add_(0, place[question], q_new * log_new)
    spread = (q * (slope - mean_slope[:, None]).square()).sum(1)
    spread.index_add_(0, place[question], q_new * (log_new - mean_slope[place[question]]).square())
    return second.double() - mean.mT @ mean / len(rows), spread.mean()
