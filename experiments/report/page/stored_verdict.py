"""The verdicts that `semcal verdict` left in a study's folder, read back; decides nothing."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments.verdict.rules import CellRow, Finding, Part, Verdict


@dataclass(frozen=True)
class StoredVerdict:
    """What verdict.json holds: the verdicts, what they were decided on in words, and when the file was written (in
    seconds, as file systems count them)."""

    verdicts: tuple[Verdict, ...]
    decided: str
    written: float


def stored_verdict(folder: Path) -> StoredVerdict | None:
    """The verdicts of a study; None where there are none, or none that this version can read."""
    path = folder / "verdict.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        verdicts = tuple(map(_verdict, found["hypotheses"]))
        decided = (
            f"Decided on {found['runs']} runs, confidence {found['confidence']}, delta {found['delta']:g}, level "
            f"{found['level']:g}."
        )
        return StoredVerdict(verdicts, decided, path.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another version
        return None


def _verdict(row: dict[str, Any]) -> Verdict:
    finding = Finding(
        key=row["key"],
        parts=tuple(_read(Part, part) for part in row["parts"]),
        context=tuple(_read(Part, part) for part in row["context"]),
        reason=row["reason"],
        undecidable=row["undecidable"],
        runs=tuple(row["runs"]),
        cells=tuple(_read(CellRow, cell) for cell in row["cells"]),
    )
    return Verdict(finding, row["decision"], _number(row["p_holm"]), _number(row["p_against_holm"]))


def _read(kind: Any, row: dict[str, Any]) -> Any:
    """A row of figures; JSON has no NaN, and writes null."""
    return kind(**{field.name: _number(row[field.name]) for field in fields(kind)})


def _number(value: Any) -> Any:
    return math.nan if value is None else value
