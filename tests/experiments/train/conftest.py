"""A tiny base model, questions of our own, and the first stage of a lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.train.stage_settings import settings_for
from experiments.train.train_from import train_from
from tests.conftest import save_checkpoint

COLOURS = ("red", "blue", "green", "one", "two", "three")
FEW = {"steps": 4, "batch_size": 4, "warmup": 1, "checkpoints": 3, "rank": 2}


class Halted(Exception):
    """As if the process had been killed."""


def halt_at(step: int):
    def watch(progress):
        if progress.step == step:
            raise Halted

    return watch


def table(folder: Path, n: int = 80, **more) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "question": f"the {COLOURS[i % 6]} {COLOURS[i // 6 % 6]} {COLOURS[i // 36]}",
            "group": f"g{i // 2}",
        }
        | {"answers": [COLOURS[i % 4], COLOURS[i % 4].upper()]}
        | more
        for i in range(n)
    ]
    file = folder / "colours.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    return str(table(tmp_path_factory.mktemp("questions")))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("base") / "llama", scale=4.0))


@pytest.fixture(scope="module")
def sft(base, questions, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("lineage")
    return str(train_from(base, "sft", questions, settings_for("sft", "cpu", **FEW), out))
