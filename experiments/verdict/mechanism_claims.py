"""The mechanism put to the test: does predictability go with calibration (H4), and does removing what the probe reads
harm (H5)?

By the rules in `rules.py`; knows runs as `Measured` arrays and tables, no files and no models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from experiments.verdict.calibration_claims import Law, labels, of_stage, standing
from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import Finding, Part
from probes.interventions.effects import FAMILY
from semcal.calibration.inference.association import Association, grid_association
from semcal.seeds import keyed_generator

LADDER = ("lens", "linear", "ridge-logit", "low-rank", "mlp", "attention", "lora")
READOUTS = ("lens", "linear", "ridge-logit", "low-rank")  # where one of these fails, another rung may succeed
FEWEST = 4  # cells; of three, even a perfect order has a chance of one in three
CONTROLS = ("isotropic", "matched")
COMBINATIONS = 9999


@dataclass(frozen=True)
class Grid:
    """Runs [model][dataset][style], none missing; `left_out` are models that lack a cell, or the rung in one."""

    runs: list[list[list[Measured]]]
    left_out: tuple[str, ...]

    @property
    def cells(self) -> list[Measured]:
        return [run for model in self.runs for dataset in model for run in dataset]

    def values(self, of: Callable[[Measured], float]) -> np.ndarray:
        """[model, dataset, style] a figure of each run."""
        return np.array([[[of(run) for run in dataset] for dataset in model] for model in self.runs], dtype=float)


def predictability_helps(runs: Sequence[Measured], law: Law) -> Finding:
    """H4, for the highest rung that a whole grid of runs has; the rungs below are shown for context."""
    sizes = sorted({len(run.correct) for run in runs})
    if len(sizes) > 1:
        return Finding("H4", reason=f"its runs differ in n ({', '.join(map(str, sizes))}); give the datasets one n")
    grids = {rung: grid_of(_one_prompt(runs), rung) for rung in LADDER}
    able = [rung for rung, grid in grids.items() if len(grid.cells) >= FEWEST]
    if not able:
        return Finding("H4", reason=f"no rung was fitted on a whole grid of {FEWEST} cells or more; see probes.enabled")
    parts, context = tuple(_of_rung(grids[able[-1]], able[-1], law)), []
    for rung in able[:-1]:
        context += _of_rung(grids[rung], rung, law)
    return Finding("H4", parts, tuple(context), runs=labels(grids[able[-1]].cells))


def _one_prompt(runs: Sequence[Measured]) -> list[Measured]:
    """Each weights under one prompt, their natural one if it was run: the same weights twice are not two models."""
    prompts: dict[str, set[str]] = {}
    for run in runs:
        prompts.setdefault(run.weights, set()).add(run.prompt)

    def chosen(run: Measured) -> str:
        natural = "few-shot" if run.stage in ("base", None) else "chat"
        return natural if natural in prompts[run.weights] else run.prompt

    return [run for run in runs if run.prompt == chosen(run)]


def grid_of(runs: Sequence[Measured], rung: str) -> Grid:
    """The models that have the rung in every cell, over all datasets and styles."""
    places = {(r.model, r.dataset, r.style): r for r in runs}
    models, datasets, styles = (list(dict.fromkeys(key[i] for key in places)) for i in range(3))

    def whole(model: str) -> bool:
        own = [places.get((model, d, s)) for d in datasets for s in styles]
        return all(r is not None and np.isfinite(r.explained.get(rung, np.nan)) for r in own)

    kept = [m for m in models if whole(m)]
    grid = [[[places[m, d, s] for s in styles] for d in datasets] for m in kept]
    return Grid(grid, tuple(m for m in models if m not in kept))


def _of_rung(grid: Grid, rung: str, law: Law) -> Iterator[Part]:
    """Rank correlation with the excess, and the partial one given accuracy and entropy."""
    x, y = grid.values(lambda r: r.explained[rung]), grid.values(lambda r: r.excess.estimate)
    given = np.stack([grid.values(lambda r: r.accuracy), grid.values(lambda r: r.entropy)])
    without = f", without {', '.join(grid.left_out)}" if grid.left_out else ""
    what = f"{rung}, {len(grid.cells)} runs of {len(grid.runs)} model{'s' if len(grid.runs) > 1 else ''}{without}"
    yield _part(what, grid_association(x, y, level=law.level, seed=law.seed), rung)
    if np.isfinite(given).all():
        found = grid_association(x, y, given, level=law.level, seed=law.seed)
        yield _part(f"{what}, given accuracy and entropy", found, rung)


def _part(what: str, a: Association, rung: str) -> Part:
    against = float("nan") if rung in READOUTS else a.p_positive
    return Part(what, "rho", a.rho, a.low, a.high, "< 0", a.p_negative, against, a.detectable)


def removing_harms(runs: Sequence[Measured], law: Law) -> Finding:
    """H5, from the rows that `semcal intervene` has written."""
    bases = of_stage(standing(runs), ["base"])
    folders = ", ".join(r.folder for r in bases) or "RUN of a base model in concise or sentence"
    changed = [r for r in bases if not r.interventions.empty and "ablate" in set(r.interventions["kind"])]
    families = {control: [f for r in changed for f in _families(r, control)] for control in CONTROLS}
    if not all(families.values()):
        lacks = "an intervention" if not changed else "both kinds of random controls"
        return Finding("H5", reason=f"no run has {lacks}; `semcal intervene {folders}`", runs=labels(changed))
    parts = tuple(_against_random(control, families[control], law) for control in CONTROLS)
    return Finding("H5", parts, runs=labels(changed))


def _families(run: Measured, control: str) -> Iterator[np.ndarray]:
    """For each ablation, its excess and then those of its random controls; that of the unchanged model cancels."""
    ablations = run.interventions.query("kind == 'ablate'")
    for _, rows in ablations.groupby(FAMILY, sort=False):
        excess, kind = (rows["smece"] - rows["null_mean"]).to_numpy(float), rows["control"].to_numpy()
        if (kind == "").any() and (kind == control).any():
            yield np.concatenate([excess[kind == ""][:1], excess[kind == control]])


def _against_random(control: str, families: Sequence[np.ndarray], law: Law) -> Part:
    """How much more an ablation raises the excess than random ones do, on average over ablations.

    If the probe's subspace were one more random one, any member of a family could be the one of interest: the p-value
    is the share of random choices, one per family, with a mean at least as large.
    """

    def lead(values: np.ndarray) -> np.ndarray:
        """[member]: each minus the mean of the others."""
        return values - (values.sum() - values) / (len(values) - 1)

    leads = [lead(values) for values in families]
    observed = float(np.mean([values[0] for values in leads]))
    rng = keyed_generator(law.seed, "verdict", "random subspaces", control)
    drawn = np.mean([values[rng.integers(len(values), size=COMBINATIONS)] for values in leads], axis=0)
    spread = float(drawn.std())
    reach = float(norm.ppf((1 + law.level) / 2)) * spread
    p, against = ((1 + int(hits.sum())) / (1 + COMBINATIONS) for hits in (drawn >= observed, drawn <= observed))
    least = float((norm.ppf(law.level) + norm.ppf(0.8)) * spread)
    members = sum(len(f) - 1 for f in families)
    what = f"{len(families)} ablations − {members} {control} subspaces"
    return Part(what, "excess smECE", observed, observed - reach, observed + reach, "> 0", p, against, least)
