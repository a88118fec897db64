"""docs/extending.md, followed to the letter on a copy of the packages: every block applied, every command run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from semcal import Run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}


def follow(section: str, folder: Path) -> None:
    """Apply the blocks of a section in order; each says in its first line what to do with it."""
    blocks = re.findall(r"^```\w+\n# ([^\n]+)\n(.*?)^```$", SECTIONS[section], flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == SECTIONS[section].count("\n```") / 2, "every block says where it goes"
    for heading, body in blocks:
        if heading == "run":
            run(folder, body)
        elif created := re.fullmatch(r"new file: (\S+)", heading):
            assert not (folder / created[1]).exists()
            (folder / created[1]).write_text(body, encoding="utf-8")
        else:
            name, where, line = re.fullmatch(r"(\S+), (after|before) the line: (.+)", heading).groups()
            text = (folder / name).read_text(encoding="utf-8")
            assert text.count(f"{line}\n") == 1, f"{name} has one line {line!r}"
            both = f"{line}\n{body}" if where == "after" else f"{body}{line}\n"
            (folder / name).write_text(text.replace(f"{line}\n", both), encoding="utf-8")


def run(folder: Path, commands: str) -> None:
    script = f'set -e\nsemcal() {{ "{sys.executable}" -m experiments.cli "$@"; }}\n{commands}'
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages."""
    folder = tmp_path_factory.mktemp("extending")
    for package in ("semcal", "probes", "experiments"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.long
def test_a_new_dataset_and_a_new_b(folder):
    follow("A dataset", folder)
    (cell,) = (folder / "runs" / "rivers").glob("atlas*")
    assert Run(cell).questions()["text"].str.startswith("What does the river").all()
    assert Run(cell).calibration()["semantics"] == "exact/4"
    follow("A collapsing function B", folder)
    (agreement,) = (cell / "looks").glob("agreement-*.json")
    assert "initial" in agreement.read_text()


@pytest.mark.long
def test_a_new_rung(folder):
    follow("A rung", folder)
    (found,) = (folder / "runs" / "neighbours").glob("*/probes.parquet")
    assert "neighbours" in set(pd.read_parquet(found)["rung"])
