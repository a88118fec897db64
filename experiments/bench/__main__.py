"""`python -m experiments.bench NAME [--json]`: one comparison, as a table or as one line of JSON."""

import json
import os
import sys
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="sampler, capture, growth, semantics, calibration, probes, open-probes, planted-open, generative, "
            "validity, stops, scale, engines, page"
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    figure: Annotated[Path | None, typer.Option(help="File for the figure of growth.")] = None,
) -> None:
    """Time one comparison against what a user would otherwise run. Or, for validity and planted-open, count how often
    the tests of this project err on models with a planted truth, and exit with 1 if one errs too often; for
    open-probes, exit with 1 if a large run takes too long or too much memory; for generative, exit with 1 if a known
    distribution is not learnt; or, for stops, stop a run of a
    real model at random moments, and exit with 1 if too much is lost; for scale, exit with 1 if a large study costs its
    driver too much."""
    from transformers.utils.logging import disable_progress_bar

    from experiments.bench.calibration_cases import calibration_cases
    from experiments.bench.generative.generative_cases import Emitted, generative_cases
    from experiments.bench.open_cases import Cost, Recovery, open_probe_cases, planted_open_cases
    from experiments.bench.probe_cases import probes_cases
    from experiments.bench.real.engine_cases import engine_cases
    from experiments.bench.real.real_cases import real_cases
    from experiments.bench.runs.page_cases import page_cases
    from experiments.bench.runs.scale_cases import Scaled, scale_cases
    from experiments.bench.runs.stop_cases import Stop, stop_cases
    from experiments.bench.sampler_cases import capture_cases, draw, growth_cases, sampler_cases
    from experiments.bench.semantics_cases import semantics_cases
    from experiments.bench.timing import Skipped
    from experiments.bench.validity.validity_cases import Validity, validity_cases
    from experiments.report.summary_table import text_table

    disable_progress_bar()
    benches = {
        "sampler": lambda device: chain(sampler_cases(device), real_cases(device)),
        "capture": capture_cases,
        "growth": growth_cases,
        "semantics": semantics_cases,
        "calibration": calibration_cases,
        "probes": probes_cases,
        "open-probes": open_probe_cases,
        "planted-open": planted_open_cases,
        "generative": generative_cases,
        "validity": validity_cases,
        "stops": stop_cases,
        "scale": scale_cases,
        "engines": engine_cases,
        "page": page_cases,
    }
    if name not in benches:
        raise typer.BadParameter(f"unknown bench {name!r}; expected one of {', '.join(benches)}")
    cases = []
    progress = Console(stderr=True)
    for case in benches[name](device):
        progress.print(case.line, highlight=False)
        if not isinstance(case, Skipped):
            cases.append(case)
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw(cases).savefig(figure, dpi=150)
    rows = [c.to_dict() for c in cases]
    if as_json:
        typer.echo(json.dumps({"name": name, "cases": rows}))
    else:
        console = Console(width=None if sys.stdout.isatty() else 240)
        for columns, alike in groupby(rows, key=list):  # one table for all cases with the same figures
            cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in alike]
            console.print(text_table(columns, cells))
    if not all(case.holds for case in cases if isinstance(case, Validity | Stop | Scaled | Recovery | Cost | Emitted)):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(bench)
