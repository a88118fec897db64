"""The file that jobs of Slurm run asks for what the user's file asked for when they were submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cluster.run_on_slurm import save
from experiments.config.study import load_study
from tests.experiments.conftest import write_study

STUDIES = sorted((Path(__file__).parents[3] / "experiments/studies").rglob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_the_same_when_it_is_read_again(file, tmp_path):
    study = load_study(file, [f"output={tmp_path}"])
    saved = load_study(save(study))
    assert saved == study
    assert saved.prompting.model_fields_set == study.prompting.model_fields_set, "what was not set is not complained of"


def test_relative_paths_and_settings_of_the_command_are_kept(tmp_path, study_dict, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study_dict["datasets"][0]["path"] = "colours.jsonl"
    file = write_study(tmp_path, study_dict | {"output": "here"})
    saved = save(load_study(file, ["sampling.m=9", "name=anew"]))
    assert saved == tmp_path / "here/anew/slurm/study.yaml"
    file.write_text("name: another\n")
    study = load_study(saved)
    assert (study.sampling.m, study.output, study.datasets[0].path) == (9, "here", "colours.jsonl")
