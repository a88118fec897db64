"""How far two runs of one model are apart is measured on the questions and prompts that they share."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from experiments.bench.real import engine_agreement
from experiments.bench.real.engine_agreement import Shared, compared
from probes.activations.layers import Layers
from semcal import Run, UserError
from tests.experiments.conftest import run_dict

pytestmark = pytest.mark.long

PLAIN = {"probes": {"enabled": False}}


@pytest.fixture
def runs(tmp_path, study_dict) -> tuple[Run, Run]:
    (run,) = run_dict(tmp_path, study_dict | PLAIN)
    return run, Run(shutil.copytree(run.folder, tmp_path / "runs" / "again"))


def test_a_run_agrees_with_itself_in_every_line(runs):
    rows = list(compared(*runs))
    assert [r.what for r in rows[:4]] == ["accuracy", "confidence", "smece", "auroc"]
    assert any("1 minus the cosine" in r.what for r in rows)
    assert sum("explained of" in r.what for r in rows) == 6
    assert [r.agrees for r in rows] == [True] * (len(rows) - 2) + [None] * 2


def test_a_layer_that_is_off_is_named(runs, monkeypatch):
    read = Shared.layers

    def one_part_is_lost(self, position):
        layers = read(self, position)
        if self.run is runs[0]:
            return layers
        values = np.stack([layers.read(i) for i in range(len(layers.names))], 1)
        values[:, 2] -= 0.1 * values[:, 1]
        return Layers.of(values, layers.names)

    monkeypatch.setattr(Shared, "layers", one_part_is_lost)
    found = [r for r in compared(*runs) if r.agrees is False]
    assert {r.other for r in found if "of the stream" in r.what} == {"blocks.1.hook_resid_post"}


def test_halves_of_a_run_hold_all_of_its_samples_once(runs):
    shared = Shared(runs[0], runs[0].questions()["id"].tolist())
    one, other = shared.halves()
    sampled = shared.table.sampled_counts
    assert (one.sampled_counts + other.sampled_counts == sampled).all()
    assert (one.sampled_counts.sum(1) == sampled.sum(1) // 2).all()


def test_runs_with_other_prompts_are_not_compared(runs, tmp_path, study_dict):
    (other,) = run_dict(tmp_path, study_dict | PLAIN | {"name": "shorter"}, "prompting.shots=1")
    with pytest.raises(UserError, match=r"question 'q\d+' has another prompt in"):
        list(compared(runs[0], other))


def test_the_command_prints_a_table_and_says_by_its_code_whether_all_agrees(runs, monkeypatch):
    app = typer.Typer()
    app.command()(engine_agreement.main)
    folders = [str(run.folder) for run in runs]
    printed = CliRunner().invoke(app, folders)
    assert printed.exit_code == 0
    assert "48 questions" in printed.stdout
    monkeypatch.setattr(engine_agreement, "RELATIVE", -1.0)
    assert CliRunner().invoke(app, folders).exit_code == 1
    missing = CliRunner().invoke(app, [folders[0], folders[1] + "-none"])
    assert missing.exit_code == 2
    assert "\n" not in missing.stderr.strip()
