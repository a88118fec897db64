"""Probes at every layer, penalty and fold: ours, many at once, against scikit-learn's LogisticRegression in a loop.

Both sides use OMP_NUM_THREADS threads; the facts say how many torch uses.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import numpy as np
import psutil
import torch
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.bench.timing import Case, side_by_side
from probes.evaluation.folds import group_folds
from probes.rungs.linear import fit_softmax
from probes.rungs.registry import PENALTIES

LAYERS, FOLDS, N, WIDTH, CLASSES, M = 12, 5, 1500, 256, 16, 50
TOLERANCE = 1e-6  # nats left to gain when ours stops; theirs stops at its default
CHECKED = 3  # pairs of layer and fold of which all penalties are compared


def probes_cases(device: str = "auto") -> Iterator[Case]:
    """Case `grid`. Theirs is timed on all penalties of one layer and fold, another in each repeat, and scaled."""
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    X, Y = world()
    folds = [train for train, _ in group_folds([str(row) for row in range(N)], FOLDS, seed=0)]
    cells = [(layer, train) for train in folds for layer in range(LAYERS)]

    def ours() -> None:
        for layer, train in cells:
            fit(X[layer], Y, train, where)

    fit(X[0], Y, np.arange(50), where)  # what libraries allocate permanently is not counted
    grown = peak_growth(ours)  # before anything else that large runs, whose memory might be reused
    apart = 0.0
    for layer, train in cells[:: len(cells) // CHECKED]:
        found = fit(X[layer], Y, train, where)[0]
        apart = max(apart, np.abs(found - loop(X[layer], Y, train, tol=1e-5)).max())
    assert apart < 1e-4, f"grid: the objectives are {apart:.1e} nats apart"
    turns = cycle(cells[::7])  # every layer and fold in turn
    case = side_by_side("grid", ours, lambda: loop(X[(c := next(turns))[0]], Y, c[1]), scale=len(cells))
    facts = {
        "fits": len(cells) * len(PENALTIES),
        "theirs_fits": len(PENALTIES),  # a turn
        "apart_nats": apart,
        "peak_over_activations": 1 + grown / X.nbytes,
        "threads": torch.get_num_threads(),
    }
    yield replace(case, facts=facts)


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations [layer, question, d], whose variance along the axes falls as 1/rank, and frequencies of M samples
    [question, class], which become clearer in them from layer to layer."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(N, 32))
    Y = softmax(hidden @ rng.normal(size=(32, CLASSES)) / 2, axis=1)
    layers = []
    for clarity in np.linspace(0, 1, LAYERS):
        mixed = clarity * hidden @ rng.normal(size=(32, WIDTH)) / 32**0.5 + rng.normal(size=(N, WIDTH))
        axes = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        layers.append(mixed / np.sqrt(np.arange(1, WIDTH + 1)) @ axes + rng.normal(size=WIDTH))
    return np.stack(layers).astype(np.float32), np.stack([rng.multinomial(M, row) for row in Y]) / M


def fit(X: np.ndarray, Y: np.ndarray, train: np.ndarray, device: str) -> tuple[np.ndarray, torch.Tensor]:
    """All penalties of one layer [question, d] and fold: (objectives [penalty], weights [penalty, d, class])."""
    rows, labels = torch.as_tensor(X[train], device=device), torch.as_tensor(Y[train], device=device)
    shared = torch.zeros(len(PENALTIES), dtype=torch.long, device=device)
    found = fit_softmax(rows[None], labels, torch.tensor(PENALTIES), layer=shared, standardise=True, tol=TOLERANCE)
    return found.objective.cpu().numpy(), found.weight


def loop(X: np.ndarray, Y: np.ndarray, train: np.ndarray, tol: float = 1e-4) -> np.ndarray:
    """What a user would otherwise run: soft labels as rows repeated once per class, weighted by their mass.

    `tol` is scikit-learn's default; comparing objectives needs a finer one, since a light penalty stops it short of
    the optimum at 1e-4.
    """
    rows = StandardScaler().fit_transform(X[train].astype(np.float64))
    row, label = np.nonzero(Y[train])
    reached = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=tol)
        model.fit(rows[row], label, sample_weight=Y[train][row, label])
        logits = rows @ model.coef_.T + model.intercept_
        entropy = (logsumexp(logits, axis=1) - (Y[train] * logits).sum(1)).mean()
        reached.append(entropy + penalty / (2 * len(rows)) * (model.coef_**2).sum())
    return np.array(reached)


def peak_growth(run: Callable[[], object]) -> int:
    """Peak growth of the process in bytes while this ran, sampled every millisecond."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(1e-3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak - before
