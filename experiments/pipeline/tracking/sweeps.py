"""A point of a W&B sweep: the parameters that an agent chose are settings of the study, and name its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config.settings import slug
from experiments.config.study import Study, load_study
from semcal.errors import UserError

PARAMETERS = "WANDB_SWEEP_PARAM_PATH"  # the file in which an agent says what it chose


def load_swept(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a file; where an agent of a sweep started this process, that of the point it chose, whose name says
    in what it differs, so that no two points share a folder.

    Raises:
        UserError: as `load_study`; a point that is not one run.
    """
    if not (place := os.environ.get(PARAMETERS)):
        return load_study(path, overrides)
    chosen = _chosen(Path(place))
    if "name" in chosen:
        raise UserError(f"{place}: a sweep cannot set `name`, which is made of what it sets; leave it out")
    sets = [*overrides, *(f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in chosen.items())]
    study = load_study(path, sets)
    if (cells := len(study.cells())) > 1:
        raise UserError(
            f"{path}: a point of a sweep is one run of W&B, and this study has {cells} cells; leave one model, "
            "dataset, style and B, and let the sweep set the rest"
        )
    return load_study(path, [*sets, f"name={point_name(study.name, chosen)}"])


def point_name(study: str, chosen: Mapping[str, Any]) -> str:
    """The name of a study with what was chosen: STUDY--KEY=VALUE--KEY=VALUE.

    >>> point_name("heat", {"sampling.temperature": 0.5})
    'heat--sampling.temperature=0.5'
    """
    return "--".join([study, *(slug(f"{key}={value}") for key, value in sorted(chosen.items()))])


def _chosen(place: Path) -> dict[str, Any]:
    found = yaml.safe_load(place.read_text(encoding="utf-8"))
    return {key: entry["value"] for key, entry in found.items() if isinstance(entry, dict) and "value" in entry}
