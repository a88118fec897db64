"""A point of a sweep is a study of its own, named by what the agent chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.lib.config_util import save_config_file_from_dict

from experiments.pipeline.tracking import sweeps
from experiments.pipeline.tracking.sweeps import PARAMETERS, load_swept
from semcal import UserError
from tests.experiments.conftest import write_study


def choose(monkeypatch, folder: Path, chosen: dict[str, Any]) -> None:
    """As an agent does."""
    place = folder / "chosen.yaml"
    save_config_file_from_dict(str(place), {key: {"value": value} for key, value in chosen.items()})
    monkeypatch.setenv(PARAMETERS, str(place))


def test_points_that_differ_have_folders_that_differ(tmp_path, study_dict, monkeypatch):
    path, folders = write_study(tmp_path, study_dict), []
    for temperature in (0.5, 1.0):
        choose(monkeypatch, tmp_path, {"sampling.temperature": temperature, "styles": ["sentence"]})
        (cell,) = load_swept(path).cells()
        assert cell.sampling.temperature == temperature
        assert cell.style == "sentence"
        folders.append(cell.folder)
    assert len(set(folders)) == 2
    assert "sampling.temperature=0.5" in folders[0]


def test_without_an_agent_a_study_keeps_its_name(tmp_path, study_dict, monkeypatch):
    monkeypatch.delenv(PARAMETERS, raising=False)
    assert load_swept(write_study(tmp_path, study_dict)).name == "small"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"styles": ["concise", "sentence"]}, "a point of a sweep is one run of W&B, and this study has 2 cells"),
        ({"name": "mine"}, "a sweep cannot set `name`"),
        ({"sampling.temprature": 1}, "did you mean"),
    ],
)
def test_a_point_that_cannot_be_one_run_is_refused(tmp_path, study_dict, monkeypatch, chosen, message):
    choose(monkeypatch, tmp_path, chosen)
    with pytest.raises(UserError, match=message):
        load_swept(write_study(tmp_path, study_dict))


def test_the_sweep_that_is_shipped_sets_keys_of_a_study(tmp_path, study_dict, monkeypatch):
    sweep = yaml.safe_load((Path(sweeps.__file__).parent / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] == "smece"
    choose(monkeypatch, tmp_path, {key: of["values"][0] for key, of in sweep["parameters"].items()})
    load_swept(write_study(tmp_path, study_dict))
