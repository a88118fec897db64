import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.rungs import linear
from probes.rungs.linear import fit_softmax
from probes.solver.minimise import minimise
from probes.solver.rotation import rotate


def problem(seed: int, n: int, d: int, K: int, m: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Activations with a few strong axes and an offset, and soft labels that depend on them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.linspace(3, 0.1, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + rng.normal(size=d)
    pi = softmax(X @ rng.normal(size=(d, K)) / np.sqrt(d) * 2 + np.linspace(1, 0, K), axis=1)
    return X, pi if m is None else np.stack([rng.multinomial(m, row) for row in pi]) / m


def objective(X: np.ndarray, Y: np.ndarray, W: np.ndarray, b: np.ndarray, penalty: float) -> float:
    logits = X @ W + b
    return float((logsumexp(logits, axis=1) - (Y * logits).sum(1)).mean() + penalty / (2 * len(X)) * (W**2).sum())


def sklearn_objective(X: np.ndarray, Y: np.ndarray, penalty: float) -> float:
    """The optimum of scikit-learn on rows repeated once a class, weighted by the mass of that class."""
    row, label = np.nonzero(Y)
    model = LogisticRegression(C=1 / penalty, tol=1e-7, max_iter=2000)
    model.fit(X[row], label, sample_weight=Y[row, label])
    assert list(model.classes_) == list(range(Y.shape[1]))
    return objective(X, Y, model.coef_.T, np.asarray(model.intercept_), penalty)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(150, 12, 5), (60, 90, 4)])
def test_the_objective_reaches_scikit_learns(soft: bool, shape: tuple[int, int, int]) -> None:
    X, Y = problem(0, *shape, m=20)
    if not soft:
        Y = np.eye(Y.shape[1])[(Y / Y.mean(0)).argmax(1)]  # so that every class occurs
    penalties = [0.01, 1.0, 100.0]
    fit = fit_softmax(torch.tensor(np.stack([X] * 3)), torch.tensor(Y), torch.tensor(penalties, dtype=torch.float64))
    assert fit.converged.all()
    for index, penalty in enumerate(penalties):
        reached = float(fit.objective[index])
        assert reached == pytest.approx(
            objective(X, Y, fit.weight[index].numpy(), fit.bias[index].numpy(), penalty), abs=1e-8
        )
        assert reached <= sklearn_objective(X, Y, penalty) + 1e-6


def test_the_gradient_vanishes_at_the_optimum() -> None:
    X, Y = problem(1, 120, 10, 6)
    fit = fit_softmax(torch.tensor(X[None]), torch.tensor(Y), 0.5, tol=1e-14)
    W, b = fit.weight[0].numpy(), fit.bias[0].numpy()
    residual = softmax(X @ W + b, axis=1) - Y
    assert np.abs(X.T @ residual + 0.5 * W).max() / len(X) < 1e-6
    assert np.abs(residual.mean(0)).max() < 1e-6


def test_problems_in_a_batch_do_not_touch_each_other() -> None:
    problems = [problem(seed, 80, 8, 4) for seed in range(3)]
    X = torch.tensor(np.stack([X for X, _ in problems]))
    Y = torch.tensor(np.stack([Y for _, Y in problems]))
    penalty = torch.tensor([0.1, 10.0, 1000.0], dtype=torch.float64)
    together = fit_softmax(X, Y, penalty)
    assert len(set(together.iterations.tolist())) > 1  # some leave the batch before others
    for index in range(3):
        alone = fit_softmax(X[index : index + 1], Y[index : index + 1], penalty[index : index + 1])
        torch.testing.assert_close(together.weight[index], alone.weight[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.objective[index], alone.objective[0])


def test_problems_on_the_same_rows_may_share_them() -> None:
    X = torch.tensor(np.stack([problem(seed, 80, 8, 4)[0] for seed in range(2)]))
    Y = torch.tensor(np.stack([problem(seed, 80, 8, 4)[1] for seed in range(3)]))
    rotation, layer = rotate(X, standardise=True), torch.tensor([1, 0, 1])
    penalty = torch.tensor([0.1, 10.0, 1000.0], dtype=torch.float64)
    shared = minimise(rotation.scores, rotation.spectrum, Y, penalty, layer=layer)
    copied = minimise(rotation.scores[layer], rotation.spectrum[layer], Y, penalty)
    torch.testing.assert_close(shared.weight, copied.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(shared.objective, copied.objective)


@pytest.mark.parametrize(("dtype", "tol", "apart"), [(torch.float64, 1e-9, 1e-6), (torch.float32, 1e-6, 1e-4)])
@pytest.mark.parametrize("shape", [(90, 10, 5), (40, 60, 3)])
def test_a_grid_of_penalties_on_shared_rows_is_standardised_for_each_layer(
    dtype: torch.dtype, tol: float, apart: float, shape: tuple[int, int, int]
) -> None:
    layers = [problem(seed, *shape, m=20)[0] for seed in range(2)]
    Y, penalties, layer = problem(0, *shape, m=20)[1], [0.1, 10.0] * 2, torch.tensor([1, 1, 0, 0])
    X = torch.tensor(np.stack(layers), dtype=dtype)
    fit = fit_softmax(X, torch.tensor(Y), torch.tensor(penalties), layer=layer, standardise=True, tol=tol)
    assert fit.weight.dtype == dtype
    for index, (own, penalty) in enumerate(zip(layer.tolist(), penalties, strict=True)):
        scaler = StandardScaler().fit(layers[own])
        W, b = fit.weight[index].double().numpy(), fit.bias[index].double().numpy()
        in_units = W * np.asarray(scaler.scale_)[:, None], b + np.asarray(scaler.mean_) @ W
        Z = scaler.transform(layers[own])
        assert objective(Z, Y, *in_units, penalty) == pytest.approx(float(fit.objective[index]), abs=apart)
        assert float(fit.objective[index]) <= sklearn_objective(Z, Y, penalty) + apart


def test_with_more_features_than_rows_the_rotation_changes_nothing() -> None:
    X, Y = problem(2, 40, 70, 3)
    # the same problem with more rows than features: repeated rows leave the mean loss alone
    many = np.concatenate([X, X])
    wide = fit_softmax(torch.tensor(X[None]), torch.tensor(Y), 1.0, tol=1e-13)
    tall = fit_softmax(torch.tensor(many[None]), torch.tensor(np.concatenate([Y, Y])), 2.0, tol=1e-13)
    assert rotate(torch.tensor(X[None]), standardise=False).scores.shape == (1, 40, 40)
    assert rotate(torch.tensor(many[None]), standardise=False).scores.shape == (1, 80, 70)
    torch.testing.assert_close(wide.weight, tall.weight, atol=1e-5, rtol=0)
    fresh = torch.tensor(problem(3, 40, 70, 3)[0])
    torch.testing.assert_close(
        torch.softmax(fresh @ wide.weight[0] + wide.bias[0], 1), torch.softmax(fresh @ tall.weight[0] + tall.bias[0], 1)
    )


@pytest.mark.parametrize("shape", [(30, 8), (20, 50), (600, 8), (20, 600)])  # the last two in several parts
def test_a_rotation_is_orthogonal_and_reproduces_its_rows(shape: tuple[int, int]) -> None:
    X = torch.tensor(np.random.default_rng(0).normal(size=(2, *shape))) * 3 + 5
    rotation = rotate(X, standardise=True)
    Z = (X - X.mean(1, keepdim=True)) / X.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(rotation.scores @ rotation.basis.mT, Z)
    torch.testing.assert_close(rotation.transform(X), rotation.scores, atol=1e-9, rtol=0)
    gram = rotation.scores.mT @ rotation.scores
    torch.testing.assert_close(gram, torch.diag_embed(rotation.spectrum), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(600, 8), (20, 600)])
def test_scores_may_be_single_where_the_axes_are_double(shape: tuple[int, int]) -> None:
    X = torch.tensor(np.random.default_rng(0).normal(size=(2, *shape)), dtype=torch.float32) * 3 + 5
    X[0, :, 3] = 7.0  # a constant feature has no part in it
    exact, single = rotate(X, standardise=True), rotate(X, standardise=True, dtype=torch.float32)
    assert exact.scores.dtype == exact.axes.dtype == single.axes.dtype == torch.float64
    assert single.scores.dtype == single.transform(X).dtype == torch.float32
    torch.testing.assert_close(single.scores.double(), exact.scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact.transform(X), exact.scores, atol=1e-9, rtol=0)
    moved = X.clone()
    moved[0, :, 3] = -100.0
    torch.testing.assert_close(exact.transform(moved), exact.scores, atol=1e-9, rtol=0)


def test_a_class_without_mass_and_a_constant_feature_are_survived() -> None:
    X, Y = problem(4, 50, 6, 3)
    X[:, 2] = 7.0
    Y = np.concatenate([Y, np.zeros((50, 1))], 1)
    fit = fit_softmax(torch.tensor(X[None]), torch.tensor(Y), 1.0)
    assert torch.isfinite(fit.weight).all()
    assert torch.isfinite(fit.bias).all()
    assert float(fit.objective) <= sklearn_objective(X, Y[:, :3], 1.0) + 1e-4
    assert fit.weight[0, 2].abs().max() < 1e-9


def test_an_exhausted_budget_is_reported() -> None:
    X, Y = problem(5, 60, 8, 4)
    fit = fit_softmax(torch.tensor(X[None]), torch.tensor(Y), 0.01, max_iter=2)
    assert fit.iterations.tolist() == [2]
    assert not fit.converged.any()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 5, 2\).*\(4, 3\)"):
        fit_softmax(torch.zeros(1, 5, 2), torch.zeros(4, 3), 1.0)


def test_the_probe_is_standardised_logistic_regression_on_smoothed_targets() -> None:
    X, Y = problem(6, 90, 10, 5, m=20)
    probe = linear.LinearProbe(penalty=2.0).fit(X, Y)
    smooth = (Y * 90 + 1 / 5) / 91
    row, label = np.nonzero(smooth)
    theirs = make_pipeline(StandardScaler().fit(X), LogisticRegression(C=0.5, tol=1e-7, max_iter=2000))
    theirs[1].fit(theirs[0].transform(X)[row], label, sample_weight=smooth[row, label])
    np.testing.assert_allclose(probe.predict(X), theirs.predict_proba(X), atol=1e-3)
    np.testing.assert_allclose(probe.predict(X).sum(1), 1)


def test_the_score_is_the_share_of_kl_explained() -> None:
    X, Y = problem(7, 200, 10, 5)
    probe = linear.LinearProbe(penalty=1e-3).fit(X[:150], Y[:150])
    assert 0.9 < probe.score(X[150:], Y[150:]) <= 1
    noise = np.random.default_rng(0).normal(size=X.shape)
    assert abs(linear.LinearProbe(penalty=1e6).fit(noise[:150], Y[:150]).score(noise[150:], Y[150:])) < 0.02
    assert linear.LinearProbe(penalty=1e-3).fit(noise[:150], Y[:150]).score(noise[150:], Y[150:]) < 0


def test_the_probe_keeps_scikit_learns_contract() -> None:
    X, Y = problem(8, 60, 5, 3)
    probe = linear.LinearProbe(penalty=3.0, max_iter=7)
    assert probe.get_params() == {"penalty": 3.0, "max_iter": 7, "tol": probe.tol}
    copy = clone(probe)
    assert isinstance(copy, linear.LinearProbe)
    assert copy.get_params() == probe.get_params()
    with pytest.raises(NotFittedError):
        probe.predict(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        linear.LinearProbe(penalty=3.0).fit(X, Y)
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        linear.LinearProbe(penalty=1e-3, max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"\(59, 5\).*\(60, 3\)"):
        probe.fit(X[1:], Y)
