"""What is logged of each step of a training, a line a step, next to its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "steps.jsonl"


def read_log(file: Path) -> list[dict[str, Any]]:
    """What was logged, without a line that was not written to its end."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def cut_log(file: Path, steps: int) -> None:
    """Keep the first steps: those after them will be logged anew."""
    file.write_text("".join(map(_line, read_log(file)[:steps])), encoding="utf-8")


def add_to_log(file: Path, step: int, logs: Mapping[str, Any]) -> None:
    """Append what a trainer logged of a step: its numbers."""
    row = {"step": step} | {name: value for name, value in logs.items() if isinstance(value, int | float)}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
