"""Runs with a planted truth, as the rules of a verdict read them; no model is loaded."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.verdict.measured_run import Measured
from semcal.calibration.estimators.unparsed import unparsed_bounds
from semcal.calibration.inference.paired import leaves, plain_mean
from semcal.calibration.nulls.twins import chances_of, exact_chances
from semcal.semantics.class_table import ClassTable

STYLES = ("concise", "sentence", "cot")


def made(
    model: str = "base",
    style: str = "concise",
    dataset: str = "facts",
    *,
    off: float = 0.0,
    n: int = 1000,
    seed: int = 0,
    stage: str | None = None,
    **more: Any,
) -> Measured:
    """A run that is overconfident by `off`; runs of a dataset and seed have the same luck with the same questions."""
    luck = np.random.default_rng([seed, *dataset.encode()])
    hard, drawn = luck.beta(2, 2, n), luck.random(n)
    own = np.random.default_rng([seed, *f"{model}{style}".encode()]).normal(0, 0.03, n)
    truth = np.clip(hard + own, 0.02, 0.98)
    confidence = np.clip(truth + off, 0.01, 0.99)
    return Measured(
        label=f"{model} · {dataset} · {style}",
        folder=f"runs/{model}/{dataset}/{style}",
        model=model,
        weights=model.removesuffix("-few-shot"),
        lineage="",
        stage=stage or model.removesuffix("-few-shot"),
        step=None,
        prompt="few-shot" if model == "base" or model.endswith("few-shot") else "chat",
        dataset=dataset,
        style=style,
        confidence=confidence,
        correct=(drawn < truth).astype(float),
        group=np.arange(n).astype(str),
        chances=exact_chances(confidence),
        **more,
    )


def with_gap(run: Measured, nats: float, rung: str = "lora", **more: Any) -> Measured:
    """The run with a KL gap, known as well as a mean over its questions is."""
    n = len(run.correct)
    noisy = nats + np.random.default_rng([run.seed, *run.label.encode()]).normal(0, 0.05, n)
    gap = leaves(plain_mean, noisy, noisy, stratum=run.dataset, group=run.group, seed=0)
    return replace(run, kl_gaps={rung: gap}, **more)


def arms(raised: float, study: int, n: int = 600) -> list[Measured]:
    """Three seeds of three arms in cot, on two maps, as the study `mechanism` has them. The arms differ in their KL gap
    from the control, and the maps from each other; the error is raised by `raised` where the gap is."""
    gaps = {"direct": 0.2, "chains": 0.8, "closed": 0.6}
    luck, found = np.random.default_rng([study, 5]), []
    for seed, (arm, gap), harder in itertools.product(range(3), gaps.items(), (False, True)):
        dataset, up = ("atlas-shuffles" if harder else "atlas-rings"), (arm != "direct") + harder
        off, noise = raised * up + luck.normal(0, 0.01), luck.normal(0, 0.05)  # training seeds differ
        run = made(f"{arm}-{seed}", "cot", dataset, off=off, n=n, seed=3 * study + seed, stage="base")
        run = replace(run, lineage=f"seed-{seed}", arm=arm, prompt="few-shot")
        found.append(with_gap(run, gap + 0.3 * harder + noise, "generative"))
    return found


def mechanism(seed: int, truth: Callable[[float], float] = lambda gap: gap / 4, n: int = 600) -> list[Measured]:
    """Three base models whose error is a function of their KL gap, 0 to 0.6 nats."""
    cells = itertools.product(("a", "b", "c"), ("facts", "routes"), STYLES)
    gaps = np.random.default_rng(seed).permuted(np.tile(np.linspace(0.0, 0.6, 6), (3, 1)), axis=1).ravel()
    return [
        with_gap(made(m, s, d, off=truth(gap), n=n, seed=seed, stage="base"), float(gap))
        for (m, d, s), gap in zip(cells, gaps, strict=True)
    ]


def graded(seed: int, per_nat: float, n: int = 300) -> list[Measured]:
    """Three base models in the 33 places of the study `difficulty`. Gap (0 to 1.5 nats) and error of a place are
    those of all three; the error grows by `per_nat`, and has a part of its own that has nothing to do with the gap."""
    luck = np.random.default_rng([seed, 7])
    places = list(itertools.product([f"{seed}-{i}" for i in range(11)], STYLES))
    gaps, own = luck.permuted(np.linspace(0.0, 1.5, len(places))), np.abs(luck.normal(0, 0.02, len(places)))
    return [
        with_gap(made(model, style, dataset, off=error, n=n, seed=seed, stage="base"), float(gap), "generative")
        for model in "abc"
        for (dataset, style), gap, error in zip(places, gaps, own + per_nat * gaps, strict=True)
    ]


def unparsed_in_cot(seed: int, share: float = 0.2, n: int = 400, m: int = 50) -> Measured:
    """A run in cot that is calibrated whenever it answers, and answers not at all in a share of its samples."""
    rng = np.random.default_rng(seed)
    pi, lost = rng.dirichlet(np.ones(4), n), round(share * m)
    counts = np.column_stack([rng.multinomial(m - lost, pi), np.full(n, lost)])
    gold = (pi.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    table = ClassTable.of_arrays(counts, np.eye(5, dtype=bool)[gold], np.full(n, 4))
    found, run = table.by_count, made(style="cot", n=n, seed=seed)
    figures = {"chances": chances_of(table, by_mass=False), "unparsed": unparsed_bounds(table)}
    return replace(run, confidence=found.plug_in, correct=found.correct, **figures)
