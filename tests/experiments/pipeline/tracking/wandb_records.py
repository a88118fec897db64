"""Reads the record that W&B keeps of a run on disk: a log of LevelDB's format that holds protobuf messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[Any]:
    """The records of a file, in order; a record cut short by a kill ends them."""
    data, at, parts = path.read_bytes(), HEADER, b""  # the first 7 bytes are W&B's own header
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield pb.Record.FromString(parts)
            parts = b""


@dataclass
class Logged:
    """What one file tells W&B.

    Attributes:
        history: a dictionary per line, with `_step`.
        steps: pattern of metrics -> the metric that they are drawn over.
        artifacts: name, type, whether it is read rather than written, and its files.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @classmethod
    def read(cls, path: Path) -> Logged:
        found = cls()
        for record in messages(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found.run = record.run
                found.config |= _items(record.run.config.update)
            elif kind == "config":
                found.config |= _items(record.config.update)
            elif kind == "summary":
                found.summary |= _items(record.summary.update)
            elif kind == "history":
                found.history.append(_items(record.history.item) | {"_step": record.history.step.num})
            elif kind == "metric":
                found.steps[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "artifact":
                found.artifacts.append(record.artifact)
            elif kind == "exit":
                found.exit_code = record.exit.exit_code
        return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
