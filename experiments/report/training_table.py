"""How the models of a study were trained, from what `semcal train --from` left beside their weights, or from what was
kept of that with a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.study import AtlasConfig, Cell
from experiments.report.summary_table import markdown_table, number
from experiments.train.checkpoints import RECORD
from experiments.train.step_log import LOG, read_log
from semcal.errors import UserError
from semcal.runs.run import WITHOUT_TEXTS, Run

_TITLES = ("model", "stage", "trained on", "steps", "learning rate", "questions asked first", "loss", "mean reward")
_TOLD = (
    "Loss and reward: means of the first and of the last tenth of the steps. Questions asked first: how many were "
    "answered both right and wrong, of those asked; DPO and GRPO are trained on these. A tuning that hardly raised its "
    "reward tests nothing."
)
_SETTINGS = ("stage", "trained_on", "steps", "batch_size", "learning_rate")
_TRAINED = ("sft", "dpo", "grpo")


def training_section(rows: Sequence[tuple[Cell, Run]]) -> list[str]:
    """Lines of Markdown, none where no model seems to be of `semcal train --from`. Of models that share a path, the
    first is shown; those whose training is not known are named."""
    names, known = dict[str, str](), dict[str, dict[str, Any]]()
    for cell, run in rows:
        found = training_of(cell, run)
        if found or _was_trained(cell):
            names.setdefault(cell.model.path, cell.model.name)
            known[cell.model.path] = known.get(cell.model.path) or found
    if not names:
        return []
    lines = ["", "### How the models were trained", ""]
    if table := [_row(names[path], found) for path, found in known.items() if found]:
        lines += [*markdown_table(_TITLES, table), "", _TOLD]
    if missing := [name for path, name in names.items() if not known[path]]:
        said = (
            f"How these were trained is missing here: {', '.join(missing)}. There is neither a {RECORD} beside their "
            "weights nor a summary of one kept with their runs."
        )
        lines += ["", said] if table else [said]
    return lines


def training_of(cell: Cell, run: Run) -> dict[str, Any]:
    """How the model of a run was trained: what was kept with the run, or else `training_summary` of the model's folder.
    Empty where it is not known."""
    if run.manifest().get(WITHOUT_TEXTS):  # of another machine perhaps, where the same path is another model
        return run.training()
    return training_summary(Path(cell.model.path))


def training_summary(folder: Path) -> dict[str, Any]:
    """A few numbers of a training: settings, how many of the questions asked first were answered both right and wrong
    (`asked`: these, all), and loss and reward at its beginning and end. Empty where the folder has no record of one.

    Raises:
        UserError: the record or a log beside it cannot be read.
    """
    if not (folder / RECORD).is_file():
        return {}
    try:
        made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        logged = read_log(folder / LOG)
        return {
            **{name: made[name] for name in _SETTINGS},
            "dataset": _dataset(made["dataset"]),
            "asked": _asked(folder / "pairs.jsonl"),
            "loss": _ends([row["loss"] for row in logged if "loss" in row]),
            "reward": _ends([row["reward"] for row in logged if "reward" in row]),
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder / RECORD}, or a log beside it, cannot be read ({error}); restore it") from error


def _was_trained(cell: Cell) -> bool:
    """Whether it looks like a model of `semcal train --from`: a tuned one, from a folder and not of the organism, whose
    trainings leave no record. A name with one slash is taken for one of the Hub."""
    path = cell.model.path
    of_folder = ":" not in path and path.count("/") != 1
    return cell.model.stage in _TRAINED and of_folder and not isinstance(cell.dataset, AtlasConfig)


def _dataset(given: str) -> str:
    """The name of a dataset without the place of its file: "triviaqa:a/b.csv" -> "triviaqa", "a/b.csv" -> "b.csv"."""
    name, of_file, _ = given.partition(":")
    return name if of_file and "/" not in name else Path(given).name


def _row(name: str, found: dict[str, Any]) -> list[str]:
    asked = found["asked"]
    return [
        name,
        found["stage"],
        f"{found['trained_on']} questions of {found['dataset']}",
        f"{found['steps']} of {found['batch_size']}",
        f"{found['learning_rate']:g}",
        f"{asked[0]} of {asked[1]}" if asked else "—",
        *(" → ".join(map(number, found[key])) if found[key] else "—" for key in ("loss", "reward")),
    ]


def _asked(file: Path) -> list[int] | None:
    if not file.is_file():
        return None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [sum(row["chosen"] is not None for row in rows), len(rows)]


def _ends(values: Sequence[float]) -> list[float] | None:
    """Means of the first and of the last tenth."""
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return [float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))]
