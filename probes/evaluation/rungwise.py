"""Cross-validated predictability by any rung of the ladder, read against the same folds, marginal and ceiling.

Knows how a rung's choices are made and its predictions scored; nothing of what it learns. Linear probes of many layers
are fitted faster by `probes.evaluation.layerwise`, with a null over layers; this is for one rung at one layer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from probes.activations.layers import checked_layer
from probes.evaluation.ceiling import ceiling_of
from probes.evaluation.controls import confidence_strata, control_target, exchange_p_value
from probes.evaluation.folds import Fold, group_folds, inner_split, nested_folds
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.result import KL_EXPLAINED, Evaluation, HeldOut, Seeds, evaluation
from probes.rungs.registry import Given, candidates
from probes.rungs.rung import Rung
from probes.solver.training import named
from probes.targets.closed import ClassTarget, kl_divergence, smoothed
from probes.targets.open import sparse
from semcal.calibration.resampling import Resampling
from semcal.errors import NonFiniteError


@dataclass(frozen=True)
class Candidates:
    """What a rung chooses from in each fold.

    Attributes:
        rung: its name, for the column `rung`.
        path: the candidates, the most constrained first (`probes.rungs.registry.candidates`); fitted ones are left as
            they are.
        control: whether the control task is learnt too, at the same cost again; else its columns are NaN.
    """

    rung: str
    path: Sequence[Rung]
    control: bool = True


def evaluate_rung(
    chosen_from: Candidates,
    X: Any,
    target: ClassTarget,
    *,
    layer: str,
    group: Sequence[str],
    how: CrossValidation | None = None,
    resampling: Resampling | None = None,
) -> Evaluation:
    """Predictability of the class distribution by one rung at one layer: a row as in `evaluate_all`, and predictions.

    Folds and marginals are those of `evaluate_all` with the same seed. In each fold candidates are tried in order until
    two in a row do worse on the inner validation groups; the best is fitted to the whole training part,
    where it may hold out groups of its own for early stopping. A training part whose questions all have one and the
    same distribution teaches nothing, and its marginal is the probe.

    `p_value` tests less than that of `evaluate_all`, because a rung that trains for minutes cannot be refitted a
    thousand times. It tests, on the first fold alone, whether predictions fit their own questions: targets are permuted
    among the held-out groups, the fitted probe stays (`exchange_p_value`). It is not adjusted for several layers or
    rungs, may be small for an overconfident probe with `explained` below 0, and misses weak effects that the interval
    of `explained` may show. There is no `null_q95`: it would be of another statistic.

    Args:
        X: what the rung reads: activations [question, d], `Segments`, or a list of prompts.
        target: [question, class] and M.
        layer: for the column `layer`.
        group, how, resampling: as in `evaluate_all`; `how.exchanges` are behind `p_value`, 0 leaves it NaN.

    Returns:
        One row. The column `choice` says what was chosen in most folds, `penalty`
        the lower median of the chosen penalties, if there are any.

    Raises:
        ValueError: lengths disagree, an activation is not finite, fewer groups than folds, or no candidate.
        NonFiniteError: a loss or a prediction that is not finite, naming rung, layer and fold.
    """
    how, resampling, path = how or CrossValidation(), resampling or Resampling(), chosen_from.path
    if not path:
        raise ValueError("no candidate was given; expected at least one rung")
    check_lengths(X, target, group)
    if isinstance(X, np.ndarray):
        checked_layer(X, layer, len(target))
    seeds = Seeds.of(resampling.seed)
    splits = nested_folds(group, how.folds, seeds.folds)
    with named(f"{chosen_from.rung}, {layer}"):
        log_q, log_marginal, chosen = _held_out(path, X, target.distribution, splits, group)
    losses, baseline = (kl(target.distribution, logs) for logs in (log_q, log_marginal))
    first = splits[0].test
    p_value = np.nan
    if baseline.sum() > 0:
        names = np.asarray(group)[first].tolist()
        p_value = exchange_p_value(target.distribution[first], log_q[first], names, how.exchanges, seed=seeds.null)
    columns: dict[str, Any] = {
        "choice": _most_frequent(path, chosen),
        "n_classes": len(target.classes),
        "p_value": p_value,
    }
    penalties = [p for i in chosen if (p := getattr(path[i], "penalty", None)) is not None]
    if penalties:
        columns["penalty"] = float(np.quantile(penalties, 0.5, method="lower"))
    if chosen_from.control:
        other = control_target(target, group, confidence_strata(target), seeds.control).distribution
        with named(f"control task of {chosen_from.rung}, {layer}"):
            logs, marginal, _ = _held_out(path, X, other, splits, group)
        whole = kl(other, marginal).sum()
        columns["control"] = 1 - kl(other, logs).sum() / (whole if whole > 0 else np.nan)
    entries = sparse(target)
    at = entries.question, entries.columns(target.classes)
    return evaluation(
        HeldOut(losses[None], baseline, log_q[at][None], log_marginal[at]),
        {"rung": chosen_from.rung, "layer": [layer], "measure": KL_EXPLAINED},
        target=target,
        ceiling=ceiling_of(target, float(baseline.mean()), seed=resampling.seed),
        group=group,
        resampling=replace(resampling, seed=seeds.bootstrap),
        columns=columns,
    )


def check_lengths(X: Any, Y: Any, group: Sequence[str]) -> None:
    if not len(X) == len(Y) == len(group):
        raise ValueError(f"{len(X)} inputs, {len(Y)} targets and {len(group)} group labels; expected equal lengths")


def _held_out(
    path: Sequence[Rung], X: Any, Y: np.ndarray, folds: Sequence[Fold], group: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Log-probabilities of the probe and of the marginal [question, class], and which candidate each fold chose."""
    log_q, log_marginal, chosen = np.empty(Y.shape), np.empty(Y.shape), []
    for number, fold in enumerate(folds, start=1):
        with named(f"fold {number} of {len(folds)}"):
            best = choose(path, X, Y, group, fold.fit, fold.validation)
            log_q[fold.test] = _finite(learn(path[best], X, Y, group, fold.train, fold.test))
        log_marginal[fold.test] = log_marginal_of(Y[fold.train])
        chosen.append(best)
    return log_q, log_marginal, chosen


def _finite(log_q: np.ndarray) -> np.ndarray:
    if np.isnan(log_q).any():
        raise NonFiniteError("a predicted probability is NaN; check what is read for extreme values, or leave it out")
    return log_q


def choose(
    path: Sequence[Rung], X: Any, Y: np.ndarray, group: Sequence[str], fit: np.ndarray, validation: np.ndarray
) -> int:
    """The candidate with the least loss on the validation rows; no more are tried after two in a row that do worse."""
    if len(path) == 1:
        return 0
    best, chosen, misses = np.inf, 0, 0
    for index, rung in enumerate(path):
        loss = kl(Y[validation], learn(rung, X, Y, group, fit, validation)).mean()
        best, chosen, misses = (loss, index, 0) if loss < best else (best, chosen, misses + 1)
        if misses == 2:
            break
    return chosen


def learn_best(
    path: Sequence[Rung], X: Any, Y: np.ndarray, group: Sequence[str], train: np.ndarray, test: np.ndarray, *, seed: int
) -> np.ndarray:
    """Log-probabilities [test row, class] by the candidate that is best on groups within the training rows.

    Fewer than four groups cannot be split for a choice and for early stopping: there the marginal is predicted.
    """
    inside = np.asarray(group)[train].tolist()
    if len(set(inside)) < 4:
        return np.tile(log_marginal_of(Y[train]), (len(test), 1))
    fit, validation = inner_split(inside, 5, seed=seed)
    best = choose(path, X, Y, group, train[fit], train[validation])
    return learn(path[best], X, Y, group, train, test)


def learn(rung: Rung, X: Any, Y: np.ndarray, group: Sequence[str], train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log-probabilities [test row, class] by a rung fitted to the training rows, or by their marginal if all agree."""
    if (Y[train] == Y[train[0]]).all():
        return np.tile(log_marginal_of(Y[train]), (len(test), 1))
    fresh: Any = clone(rung)  # scikit-learn's type for it is vague
    fresh.fit(_rows(X, train), Y[train], np.asarray(group)[train].tolist())
    return fresh.predict_log(_rows(X, test))


def log_marginal_of(Y: np.ndarray) -> np.ndarray:
    """[class], logarithm of the mean of smoothed training targets [question, class]."""
    return smoothed(torch.as_tensor(Y)).mean(0).log().numpy()


def kl(Y: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """[question], nats."""
    return kl_divergence(torch.as_tensor(Y), torch.as_tensor(log_q)).numpy()


def out_of_fold(X: np.ndarray, Y: np.ndarray, group: Sequence[str], *, folds: int = 5, seed: int) -> np.ndarray:
    """Class probabilities [question, K], each from a probe that saw no question of its group.

    Where there is nothing to predict, they lean a little against the target over all questions together: what a fold
    holds above the mean, its training part lacks. The rank correlation and AUROC of a probe that knows nothing lie a
    little below chance.

    Args:
        X: [question, d], finite.
        Y: [question, K], rows sum to 1.
        group: [question], questions that must not straddle a split.
        folds: at least 2, at most the number of groups.
        seed: of the folds, and of the inner splits that penalties are chosen on.

    Raises:
        ValueError: lengths disagree, an input that is not finite, fewer groups than folds.
    """
    predicted = np.empty(np.shape(Y))
    path = candidates("linear", Given(None, seed))
    for train, test in group_folds(group, folds, seed=seed):
        predicted[test] = np.exp(learn_best(path, X, Y, group, train, test, seed=seed))
    return predicted


def predict_elsewhere(
    X: np.ndarray, Y: np.ndarray, group: Sequence[str], others: Sequence[np.ndarray], *, seed: int
) -> list[np.ndarray]:
    """Log-probabilities [question', K] for other activations [question', d], from one probe trained on X and Y.

    The penalty is chosen on one inner split by group; then the probe is fitted to all rows given (`learn_best`).
    """
    together = np.concatenate([X, *others])
    known, elsewhere = np.arange(len(X)), np.arange(len(X), len(together))
    found = learn_best(candidates("linear", Given(None, seed)), together, Y, group, known, elsewhere, seed=seed)
    return np.split(found, np.cumsum([len(other) for other in others])[:-1])


def _rows(X: Any, rows: np.ndarray) -> Any:
    return [X[row] for row in rows] if isinstance(X, list | tuple) else X[rows]


def _most_frequent(path: Sequence[Rung], chosen: Sequence[int]) -> str:
    """The parameters in which the candidates differ, as the candidate chosen most often has them."""
    parameters = [rung.get_params(deep=False) for rung in path]
    varied = [key for key, value in parameters[0].items() if any(p[key] != value for p in parameters)]
    winner = parameters[Counter(chosen).most_common(1)[0][0]]
    return ", ".join(f"{key}={winner[key]:g}" for key in varied)
