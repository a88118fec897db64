"""`python -m experiments.pipeline.against_enumeration`: estimators of B-confidence against exact masses.

The same questions are enumerated and sampled; estimates from M = 5, 10, 20 and 50 samples are compared with the truth.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.config.run_folder import stored_cell
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal.calibration.estimators.finite_m import Estimate, estimates, m_curve, thin
from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.measures.smece import smece
from semcal.calibration.resampling import Resampling
from semcal.runs.run import Run
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable

THINNED = (5, 10, 20)
EPSILON = 0.005  # mass per question that may stay unexplored


def main(n: Annotated[int, typer.Option("-n", min=20, help="Questions per cell.")] = 400, seed: int = 0) -> None:
    """Print one table per cell."""
    study = str(files("experiments") / "studies" / "demo.yaml")
    common = [f"datasets.{i}.n={n}" for i in (0, 1)] + [f"seed={seed}", "styles=[concise, sentence]"]
    common += ["capture.positions=[]", "probes.enabled=false", "tracking.wandb=disabled"]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for how, changes in (("sampled", []), ("exact", [f"sampling.exact.epsilon={EPSILON}"])):
            prepared = prepare_study(load_study(study, [*common, *changes, f"output={folder}/{how}"]))
            run_study(prepared, Reporter())
            runs.append(prepared.runs)
        for sampled, exact in zip(*runs, strict=True):
            Console(width=120).print(_table(sampled, exact, seed))


def _table(sampled: Run, exact: Run, seed: int) -> Table:
    cell = stored_cell(sampled)
    title = f"{cell.label}: mass unexplored by enumeration {exact.calibration()['unexplored']:.3f}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("estimator", "confidence", "accuracy", "signed gap", "smECE"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    found = exact.class_table().by_count
    truth = found.plug_in.mean(), found.correct.mean(), signed_gap(found.plug_in, found.correct)
    rows = [("exact masses", (*truth, smece(found.plug_in, found.correct)))]
    rows += [(name, (e.confidence, e.accuracy, e.signed_gap, e.smece)) for name, e in _estimated(sampled, seed)]
    for name, (confidence, accuracy, gap, error) in rows:
        table.add_row(name, f"{confidence:.3f}", f"{accuracy:.3f}", f"{gap:+.3f}", f"{error:.3f}")
    return table


def _estimated(run: Run, seed: int) -> Iterator[tuple[str, Estimate]]:
    table = run.class_table()
    for m in THINNED:
        parts = thin(table.sampled_counts, m, rng=keyed_generator(seed, "truth", str(m)), repeats=1)[0]
        yield f"plug-in, M = {m}", _estimates(replace(table, counts=parts, masses=None), seed)[0]
    for row in _estimates(table, seed):
        yield f"{row.estimator}, M = {table.m}".replace("infinity, M", "infinity, from M"), row


def _estimates(table: ClassTable, seed: int) -> tuple[Estimate, ...]:
    few = Resampling(bootstrap=10, null_draws=100, seed=seed)
    return estimates(table, curve=m_curve(table, resampling=few), resampling=few)


if __name__ == "__main__":
    typer.run(main)
