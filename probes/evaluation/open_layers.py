"""Cross-validated predictability of open class distributions from each layer, by the bilinear probe.

Knows activations, class distributions, embeddings of class texts and groups of questions; nothing of models. Layers are
read a part at a time; every choice is made on training groups only; no layer is chosen, all are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.activations.layers import Layers
from probes.evaluation.controls import maximum_null, permuted_rows
from probes.evaluation.folds import Fold, nested_folds, too_few_groups
from probes.evaluation.layerwise import CrossValidation, Source
from probes.evaluation.result import Seeds
from probes.rungs.bilinear import (
    Bilinear,
    Observed,
    Shares,
    choose_bilinear,
    class_axes,
    fit_candidates,
    refit,
)
from probes.solver.rotation import rotate
from probes.targets.open import OpenTarget
from semcal.arrays import FloatArray, IntArray
from semcal.errors import UserError

_WIDER = 2**0.5  # see `evaluate_open`


@dataclass(frozen=True)
class OpenEvaluation:
    """How well open class distributions are predicted from each layer.

    Attributes:
        layers: [layer] names.
        log_q: [layer, entry] log-probability of each of a question's own classes, aligned with the entries of the
            target, by the probe that had the question's group held out. q sums to 1 over all classes that anyone may
            give, as far as these are known (`probes.rungs.bilinear`).
        candidate_log_q: [entry] the same by the candidate-only model, which knows the classes and not the question.
        answer: [layer, question] the class of the run that the probe considers likeliest, an index into
            `target.classes`.
        confidence: [layer, question] its probability.
        entropy: [layer, question] of the predicted distribution over all classes, nats.
        gain: [layer] mean over questions of the cross-entropy of the candidate-only model minus that of the probe,
            nats; below 0 the probe is worse than knowing nothing of the question.
        null_q95: 95 % quantile of the largest gain over layers where questions are exchanged.
        p_value: [layer], adjusted for looking at all layers; NaN without permutations.
        penalty: [layer, fold], infinite where the candidate-only model did best on the validation groups.
    """

    layers: tuple[str, ...]
    log_q: FloatArray
    candidate_log_q: FloatArray
    answer: IntArray
    confidence: FloatArray
    entropy: FloatArray
    gain: FloatArray
    null_q95: float
    p_value: FloatArray
    penalty: FloatArray


def evaluate_open(
    source: Source,
    target: OpenTarget,
    features: FloatArray,
    *,
    group: Sequence[str],
    how: CrossValidation | None = None,
    seed: int = 0,
) -> OpenEvaluation:
    """Predict open class distributions from every layer of a source, with the folds that every other rung has.

    A baseline is the same call with another source: `Texts` (TF-IDF and lengths), the embedding layer, the layers of an
    untrained model, or of another model on the same questions.

    `p_value` is of "this layer says nothing of which question it is". In each held-out fold every question's classes
    are scored under the directions of other held-out questions, permuted by whole groups, and the gains are summed over
    folds; the null is the largest gain over layers under one and the same permutation. Nothing is fitted again. But the
    probe of one fold learnt from the classes of the others: what questions i and j of two folds have in common by
    chance counts twice, once when i is held out and once when j is. Such a sum has twice the variance that independent
    permutations of the folds show (exactly so for predictions that are linear in the training targets), so the null is
    widened about its mean by √2.

    Where all answers are in one class nothing is fitted: every layer predicts it, and leaves no gap.

    Args:
        source: layers of finite activations, or texts.
        features: [class, feature], embeddings of `target.classes` (`probes.rungs.class_texts.class_features`).
        group: [question], questions that must not straddle a split.
        how: folds, penalties, exchanges (permutations) and device; None: the defaults.
        seed: of folds, class shares and permutations.

    Raises:
        UserError: too few groups, or predictions that are not finite, with layer and fold.
        ValueError: lengths disagree, or an activation is not finite, with layer and question.
    """
    how, seeds = how or CrossValidation(), Seeds.of(seed)
    _check(target, features, group, how.folds)
    if target.one_class:
        return _certain(source.names, target, how.exchanges)
    embedding = class_axes(features).to(how.device)
    folds = nested_folds(group, how.folds, seeds.folds)
    splits = [Split.of(target, embedding, group, fold, how.penalties) for fold in folds]
    names = np.asarray(group)
    permutations = [permuted_rows(names[fold.test].tolist(), how.exchanges, seed=seeds.null) for fold in folds]
    depth, n = len(source.names), len(target)
    log_q, candidate = np.empty((depth, len(target.mass))), np.empty(len(target.mass))
    answer = np.empty((depth, n), dtype=np.int64)
    confidence, entropy = np.empty((depth, n)), np.empty((depth, n))
    penalty, gains = np.empty((depth, len(splits))), np.zeros((depth, 1 + how.exchanges))
    for split in splits:
        candidate[target.entries(split.fold.test)] = split.alone(target)
    for part in source.parts(n):
        block = source.block(part, n, how.device)
        for at, split in enumerate(splits):
            for layer, model, held_out in split.fitted(block, how.penalties):
                index = part.start + layer
                entries = target.entries(split.fold.test)
                found = split.predict(target, model, held_out)
                if not np.isfinite(found).all():
                    raise UserError(
                        f"the bilinear probe of layer {source.names[index]} in fold {at + 1} of {len(splits)} is not "
                        "finite; check this layer's activations for extreme values, or leave the layer out"
                    )
                log_q[index, entries], penalty[index, at] = found, model.penalty
                top, log_top = model.answers(held_out, split.observed[3])
                answer[index, split.fold.test], confidence[index, split.fold.test] = top, log_top.exp()
                entropy[index, split.fold.test] = model.entropies(held_out, split.observed[3])
                gained = (target.mass[entries] * (found - candidate[entries])).sum()
                gains[index] += (gained + split.exchanged(model, held_out, permutations[at])) / n
        del block  # or it would stay while the next one is read
    null_q95, p_value = maximum_null(_widened(gains[:, 1:]), gains[:, 0])
    return OpenEvaluation(
        source.names, log_q, candidate, answer, confidence, entropy, gains[:, 0], null_q95, p_value, penalty
    )


def _certain(layers: tuple[str, ...], target: OpenTarget, exchanges: int) -> OpenEvaluation:
    """Of answers that are all in one class."""
    depth, n = len(layers), len(target)
    nothing = np.zeros((depth, exchanges))
    null_q95, p_value = maximum_null(nothing, np.zeros(depth))
    return OpenEvaluation(
        layers=layers,
        log_q=np.zeros((depth, len(target.mass))),
        candidate_log_q=np.zeros(len(target.mass)),
        answer=np.full((depth, n), target.column[0]),
        confidence=np.ones((depth, n)),
        entropy=np.zeros((depth, n)),
        gain=np.zeros(depth),
        null_q95=null_q95,
        p_value=p_value,
        penalty=np.full((depth, 1), np.inf),
    )


def candidates_alone(
    target: OpenTarget,
    features: FloatArray,
    *,
    group: Sequence[str],
    how: CrossValidation | None = None,
    seed: int = 0,
) -> FloatArray:
    """[entry] `OpenEvaluation.candidate_log_q`, without any layer; see `evaluate_open`. All shares explained of open
    classes are of what it leaves, whatever the rung."""
    how = how or CrossValidation()
    _check(target, features, group, how.folds)
    if target.one_class:
        return np.zeros(len(target.mass))
    embedding, found = class_axes(features).to(how.device), np.empty(len(target.mass))
    for fold in nested_folds(group, how.folds, Seeds.of(seed).folds):
        found[target.entries(fold.test)] = Split.of(target, embedding, group, fold, how.penalties).alone(target)
    return found


def predict_open(
    X: FloatArray, target: OpenTarget, axes: Tensor, group: Sequence[str], fold: Fold, penalties: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """Log-probabilities [entry] of the classes of the questions of `fold.test`, by the bilinear probe on one layer's
    activations [question, d] and by the candidate-only model, both learnt from `fold.train`.

    Args:
        axes: [class, axis], of `class_axes`.
        group: [question].

    Raises:
        ValueError: an activation is not finite.
    """
    split = Split.of(target, axes, group, fold, penalties)
    block = Layers.of(X[:, None], ["given"]).block(slice(0, 1), len(target), axes.device.type)
    _, model, held_out = next(split.fitted(block, penalties))
    return split.predict(target, model, held_out), split.alone(target)


def _widened(gains: FloatArray) -> FloatArray:
    """[layer, permutation] about the mean over permutations, see `evaluate_open`."""
    if not gains.size:
        return gains
    centre = gains.mean(1, keepdims=True)
    return centre + _WIDER * (gains - centre)


def _check(target: OpenTarget, features: FloatArray, group: Sequence[str], folds: int) -> None:
    if not len(target) == len(group):
        raise ValueError(f"{len(target)} targets and {len(group)} group labels; expected one of each per question")
    if len(features) != len(target.classes):
        raise ValueError(f"{len(features)} embeddings of {len(target.classes)} classes; expected one each, in order")
    if refusal := too_few_groups(len(set(group)), folds):
        raise UserError(refusal)


@dataclass(frozen=True)
class Split:
    """A fold with all that does not depend on the layer.

    Attributes:
        fold: its questions.
        fit, validation: their places within `fold.train`.
        observed: what the questions of fit, validation, train and test answered.
        candidates: the candidate-only models of fit and of train.
    """

    fold: Fold
    fit: Tensor
    validation: Tensor
    observed: tuple[Observed, Observed, Observed, Observed]
    candidates: tuple[Bilinear, Bilinear]

    @classmethod
    def of(
        cls, target: OpenTarget, embedding: Tensor, group: Sequence[str], fold: Fold, penalties: Sequence[float]
    ) -> Split:
        """`embedding`: [class, axis], on the device where all is computed."""
        observed = []
        for learnt, scored in ((fold.fit, fold.validation), (fold.train, fold.test)):
            shares = Shares.left_out(target, learnt, group, seed=0)
            observed.append(Observed.of(target, learnt, embedding, shares))
            observed.append(Observed.of(target, scored, embedding, shares.of_all(len(scored))))
        fit, validation, train, test = observed
        place = {row: at for at, row in enumerate(fold.train.tolist())}
        inner = [torch.tensor([place[row] for row in rows.tolist()]) for rows in (fold.fit, fold.validation)]
        candidates = fit_candidates(fit, validation, train, penalties)
        return cls(fold, inner[0], inner[1], (fit, validation, train, test), candidates)

    def fitted(self, block, penalties):
        """(layer, model, activations of held-out questions on the axes of the training rows) of each layer."""
        fit, validation, train, _ = self.observed
        learnt, held_out = block.split(self.fold.train, self.fold.test)
        for layer in range(len(block)):
            rotation = rotate(learnt[layer : layer + 1], standardise=block.standardise, dtype=torch.float32)
            scores = rotation.scores[0]
            chosen = choose_bilinear(
                (scores[self.fit], fit), (scores[self.validation], validation), self.candidates[0], penalties
            )
            model = refit(chosen, self.candidates[1], scores, train)
            yield layer, model, rotation.transform(held_out[layer : layer + 1])[0]

    def predict(self, target: OpenTarget, model: Bilinear, scores: Tensor) -> FloatArray:
        """[entry] log-probabilities of the classes of the held-out questions, from their activations [question, r] on
        the axes of the training rows."""
        test = self.observed[3]
        directions = model.directions(scores).double().cpu()
        entries = target.entries(self.fold.test)
        row = np.repeat(np.arange(len(test)), np.diff(target.starts)[self.fold.test])
        column = torch.as_tensor(target.column[entries])
        own = (directions[torch.as_tensor(row)] * test.embedding.cpu()[column].double()).sum(1)
        own += model.trust * test.shares.log_share[0].cpu().double()[column]
        return own.numpy() - model.log_total(scores, test).numpy()[row]

    def alone(self, target: OpenTarget) -> FloatArray:
        """[entry] likewise by the candidate-only model."""
        return self.predict(target, self.candidates[1], self.observed[3].mean.new_zeros(len(self.fold.test), 0))

    def exchanged(self, model: Bilinear, scores: Tensor, permutations: IntArray) -> FloatArray:
        """[1 + permutation], how much more log-probability, summed over held-out questions, the predictions for other
        questions give their classes than their own; the first is 0."""
        gained = np.zeros(1 + len(permutations))
        if len(permutations):
            fit = model.log_fit(scores, self.observed[3]).numpy()
            gained[1:] = fit[np.arange(len(fit)), permutations].sum(1) - fit.trace()
        return gained
