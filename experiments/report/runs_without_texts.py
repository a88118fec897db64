"""The scored runs of a study, without texts and activations, to be kept under version control:
`python -m experiments.report.runs_without_texts NAME`.

`python -m experiments.report.results` and `semcal verdict` read them where a run folder is not there, so that pages and
verdicts can be written again, and extended by further cells, on another machine. What is kept, and how:
`semcal/runs/without_texts.py`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.config.run_folder import EVIDENCE, stored_cell
from experiments.report.results import variants
from experiments.report.training_table import training_of
from semcal.errors import UserError
from semcal.runs.run import Run
from semcal.runs.without_texts import keep_without_texts


def keep(name: str, runs: Path, into: Path) -> list[Path]:
    """Keep the scored runs of a study and of its variants (`NAME-…`); returns the folders written.

    Raises:
        UserError: there is none; see `keep_without_texts`.
    """
    found = [Run(path.parent) for one in variants(name, runs) for path in sorted((runs / one).glob("*/config.yaml"))]
    scored = [run for run in found if run.calibration()]
    if not scored:
        raise UserError(f"no scored run of {name} below {runs}; `semcal run` the study first")
    for run in scored:
        folder = into / run.folder.parent.name
        keep_without_texts(run, folder, training_of(stored_cell(run), run) or _known(run, Run(folder / run.name)))
    return [into / run.folder.parent.name / run.name for run in scored]


def _known(run: Run, kept: Run) -> dict[str, Any]:
    """What was kept before of how its model was trained, if that had the same weights."""
    same = kept.manifest().get("weights_hash") == run.manifest().get("weights_hash")
    return kept.training() if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--into", type=Path, default=EVIDENCE)
    options = parser.parse_args()
    try:
        kept = keep(options.name, options.runs, options.into)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    for folder in kept:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        sys.stdout.write(f"written: {folder}, {size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
