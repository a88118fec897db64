"""`make mechanism`: nine trainings, of which one that fails does not cost the others; `semcal` is played by a script."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MAKEFILE = Path(__file__).parents[3] / "Makefile"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def made(
    folder: Path, code: int, *options: str, target: str = "mechanism"
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What is called when training chains-1 ends with a code, and how make ends."""
    script = f'#!/bin/sh\necho "$@" >> {folder}/calls\ncase "$*" in *chains-1*) exit {code} ;; esac\n'
    for name in ("semcal", "python"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / "stamp").touch()
    (folder / "calls").write_text("")
    command = ["make", "-f", str(MAKEFILE), target, f"BIN={folder}", f"STAMP={folder}/stamp", *options]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}  # without what a make around the tests may have set
    ended = subprocess.run(command, cwd=MAKEFILE.parent, env=env, capture_output=True, text=True, check=False)
    return (folder / "calls").read_text().splitlines(), ended


def test_what_is_trained_is_measured_and_decided(tmp_path):
    calls, ended = made(tmp_path, 0)
    assert ended.returncode == 0
    assert [call.split()[0] for call in calls] == [*["train"] * 9, "run", "verdict", "-m"]
    assert calls[5] == "train atlas --stage arm --set arm=closed --seed 1 --out runs/arms/closed-1"


def test_the_repetition_has_seeds_of_its_own_and_the_models_that_its_study_names(tmp_path):
    calls, ended = made(tmp_path, 0, target="mechanism-again")
    assert ended.returncode == 0
    study = yaml.safe_load((MAKEFILE.parent / "experiments/studies/probes/mechanism-again.yaml").read_text())
    trained = [call.split("--out ")[1] for call in calls if call.startswith("train")]
    assert [f"{folder}/base" for folder in trained] == [model["path"] for model in study["models"]]
    assert {call.split("--seed ")[1].split()[0] for call in calls[:12]} == set("345678")
    assert calls[12] == "run experiments/studies/probes/mechanism-again.yaml"


def test_a_training_that_diverges_does_not_cost_the_others(tmp_path):
    calls, ended = made(tmp_path, 2)
    assert [call.split()[0] for call in calls] == ["train"] * 9
    assert ended.returncode != 0
    said, of_make = ended.stderr.splitlines()
    assert said.startswith("not trained, as said above: runs/arms/chains-1; if it diverged, delete all folders of its")
    assert said.endswith("name an unused seed in its place in make mechanism ARM_SEEDS='0 1 2'")
    assert "Error 1" in of_make
    again, _ = made(tmp_path, 0, "ARM_SEEDS=0 9 2")
    assert again[3:6] == [
        f"train atlas --stage arm --set arm={arm} --seed 9 --out runs/arms/{arm}-1"
        for arm in ("direct", "chains", "closed")
    ]


def test_what_is_stopped_is_stopped(tmp_path):
    calls, ended = made(tmp_path, 130)
    assert len(calls) == 5
    assert "Error 130" in ended.stderr
