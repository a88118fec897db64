"""Subspaces of activations: what a probe reads, where confidence grows, and random ones to hold them against.

Knows arrays only. A random subspace of equal rank is not yet a fair control: activations hardly extend in most
directions, so ablating an isotropic one changes almost nothing. `random_subspaces` also draws ones that take out as
much variance as the probe's does.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from sklearn.linear_model import RidgeCV

from probes.evaluation.folds import group_folds
from probes.rungs.linear import LinearProbe
from probes.rungs.registry import PENALTIES
from semcal.seeds import keyed_generator

_STEEPEST = 1e3  # exponent beyond which a tilted draw is the principal subspace itself


def chosen_probe(
    X: np.ndarray, Y: np.ndarray, group: Sequence[str], *, penalties: Sequence[float] = PENALTIES, seed: int
) -> LinearProbe:
    """A linear probe of class distributions, its penalty chosen on a fifth of the groups, then fitted to all rows.

    Args:
        X: [question, d].
        Y: [question, class], rows sum to 1.
        group: [question], which must not straddle that split.
    """
    fit, held_out = group_folds(group, min(5, len(set(group))), seed=seed)[0]
    shares = {p: LinearProbe(p, tol=1e-6).fit(X[fit], Y[fit]).score(X[held_out], Y[held_out]) for p in penalties}
    return LinearProbe(max(shares, key=lambda p: shares[p]), tol=1e-6).fit(X, Y)


def covariance(X: np.ndarray) -> np.ndarray:
    """[d, d] of rows [n, d], plain (over n)."""
    centred = np.asarray(X, dtype=np.float64) - X.mean(0)
    return centred.T @ centred / len(X)


def removed_variance(basis: np.ndarray, cov: np.ndarray) -> float:
    """Mean squared norm of what ablating a subspace [d, r] takes from activations of covariance [d, d]."""
    return float(np.einsum("dr,de,er->", basis, cov, basis))


def probe_subspace(weight: np.ndarray, rank: int, cov: np.ndarray) -> np.ndarray:
    """Orthonormal basis [d, r] of the directions in which a linear probe's logits vary most.

    Logits are xᵀW up to a constant per row, so W is centred over classes; over questions they have the covariance WᵀΣW.
    Its top r eigenvectors V are the combinations of logits that vary most, and W V spans what they are read from: with
    that set to its mean, these r combinations are the same for every question.

    Args:
        weight: [d, K] for raw activations, as `LinearProbe.weight_`.
        rank: r; lowered to the rank of W where W has less.
        cov: [d, d] covariance of the activations.
    """
    centred = weight - weight.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(cov)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T  # [d, d], rootᵀ root = cov
    _, spread, combinations = np.linalg.svd(root @ centred, full_matrices=False)
    kept = min(rank, int((spread > 1e-10 * max(spread[0], np.finfo(float).tiny)).sum()))
    basis, _ = np.linalg.qr(centred @ combinations[:kept].T)
    return basis


def confidence_direction(
    X: np.ndarray, confidence: np.ndarray, group: Sequence[str], *, penalties: Sequence[float] = PENALTIES, seed: int
) -> np.ndarray:
    """[d] along which a ridge probe reads B-confidence, upwards; its length is the standard deviation of X along it.

    It is the probe's weight, for raw activations; the penalty is chosen by cross-validation over groups.

    Args:
        X: [question, d].
        confidence: [question] shares.
        group: [question].
    """
    folds = group_folds(group, min(5, len(set(group))), seed=seed)
    deviation = X.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    weight = RidgeCV(alphas=penalties, cv=folds).fit(X / scale, confidence).coef_ / scale
    unit = weight / np.linalg.norm(weight)
    return unit * float((X @ unit).std())


def random_subspaces(
    width: int, rank: int, count: int, *, seed: int, cov: np.ndarray | None = None, removed: float | None = None
) -> list[np.ndarray]:
    """Random orthonormal bases [d, r].

    Without `cov`, isotropic. With it and `removed`, every one takes out exactly that variance: the span of Σ^a G, G
    normal, where the exponent a is found for each draw. At a = 0 it is isotropic; with a it turns towards the principal
    subspace, and the variance it takes out grows monotonically, for
    d/da tr(PΛ) = Σᵢⱼ Pᵢⱼ² (λᵢ − λⱼ)(log λᵢ − log λⱼ) ≥ 0 with P the projection in the axes of Σ. What no subspace of
    that rank can reach is given the nearest, the principal (or least) subspace itself.

    Args:
        width: d.
        rank: r, at most d.
        count: of subspaces.
        seed: the same seed gives the same G, whatever `removed` is.
        cov: [d, d].
        removed: mean squared norm to be matched, see `removed_variance`.

    Raises:
        ValueError: a rank beyond the width, or only one of `cov` and `removed`.
    """
    if not 0 <= rank <= width:
        raise ValueError(f"a subspace of rank {rank} does not fit into {width} dimensions")
    if (cov is None) != (removed is None):
        raise ValueError("a matched random subspace needs both a covariance and the variance to be removed")
    axes = None if cov is None else np.linalg.eigh(cov)
    found = []
    for draw in range(count):
        rng = keyed_generator(seed, "subspace", str(draw))
        start, signs = rng.standard_normal((width, rank)), rng.choice([-1.0, 1.0], rank)  # LAPACK's are not random
        if axes is None or removed is None:
            found.append(np.linalg.qr(start)[0] * signs)
        else:
            found.append(axes[1] @ _tilted(start, axes[0], removed) * signs)
    return found


def _tilted(start: np.ndarray, values: np.ndarray, removed: float) -> np.ndarray:
    """The span of diag(values)^a start [d, r] that takes out `removed`, orthonormal."""
    values = np.maximum(values, 1e-12 * values.max())
    plain, _ = np.linalg.qr(start)
    upwards = removed >= values @ np.square(plain).sum(1)
    order = np.argsort(-values if upwards else values)  # towards the first axes
    rank, ordered = start.shape[1], values[order]
    # Column operations keep the span: with the first r rows reduced to the identity, powers cannot overflow, and the
    # columns do not become parallel.
    below = start[order][rank:] @ np.linalg.inv(start[order][:rank])
    ratio = np.exp(-np.abs(np.log(ordered[rank:, None]) - np.log(ordered[None, :rank])))

    def at(exponent: float) -> np.ndarray:
        return np.linalg.qr(np.concatenate([np.eye(rank), below * ratio**exponent]))[0]

    def missing(exponent: float) -> float:
        return float(ordered @ np.square(at(exponent)).sum(1)) - removed

    steep = _STEEPEST
    if missing(0.0) * missing(steep) < 0:
        steep = float(brentq(missing, 0.0, steep, xtol=1e-10))  # pyright: ignore[reportArgumentType]
    basis = np.empty_like(start)
    basis[order] = at(steep)
    return basis
