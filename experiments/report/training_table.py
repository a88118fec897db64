"""How the models of a study were trained, from what `semcal train --from` left beside their weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.summary_table import markdown_table, number
from experiments.train.checkpoints import RECORD
from experiments.train.step_log import LOG, read_log

_TITLES = ("model", "stage", "trained on", "steps", "learning rate", "questions asked first", "loss", "mean reward")
_TOLD = (
    "Loss and reward: means of the first and of the last tenth of the steps. Questions asked first: how many were "
    "answered both right and wrong, of those asked; DPO and GRPO are trained on these. A tuning that hardly raised its "
    "reward tests nothing."
)


def training_section(models: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of Markdown, none where no folder says how it was trained.

    Args:
        models: Name and path of each model; of those that share a path, the first is shown.
    """
    names: dict[str, str] = {}
    for name, path in models:
        names.setdefault(path, name)
    rows = [_row(name, Path(path)) for path, name in names.items() if (Path(path) / RECORD).is_file()]
    if not rows:
        return []
    return ["", "### How the models were trained", "", *markdown_table(_TITLES, rows), "", _TOLD]


def _row(name: str, folder: Path) -> list[str]:
    made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    logged = read_log(folder / LOG)
    return [
        name,
        made["stage"],
        f"{made['trained_on']} questions of {made['dataset']}",
        f"{made['steps']} of {made['batch_size']}",
        f"{made['learning_rate']:g}",
        _asked(folder / "pairs.jsonl"),
        _change([row["loss"] for row in logged]),
        _change([row["reward"] for row in logged if "reward" in row]),
    ]


def _asked(file: Path) -> str:
    if not file.is_file():
        return "—"
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return f"{sum(row['chosen'] is not None for row in rows)} of {len(rows)}"


def _change(values: Sequence[float]) -> str:
    if not values:
        return "—"
    tenth = max(1, len(values) // 10)
    return f"{number(float(np.mean(values[:tenth])))} → {number(float(np.mean(values[-tenth:])))}"
