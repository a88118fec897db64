"""The workspace of a study in W&B: its cells side by side, with the panels that compare them."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.pipeline.tracking.session import one_line

log = logging.getLogger(__name__)

PLACE = "workspace.url"  # in the study's `wandb` folder, so that a study has one
_CHARTS = ("smece", "smece_excess", "signed_gap", "accuracy", "confidence", "kl_gap")
_CURVE = "probe/classes/last_prompt_token/gap"


def workspace(entity: str, project: str, study: str, folder: Path) -> str:
    """The address of the study's workspace, made if it is not there yet; "" without the package wandb-workspaces, or
    where W&B does not make it, which is said in one line."""
    place = folder / "wandb" / PLACE
    if place.is_file():
        return place.read_text(encoding="utf-8").strip()
    if find_spec("wandb_workspaces") is None:
        return ""
    try:
        url = _made(entity, project, study)
    except Exception as error:
        log.warning("W&B: no workspace was made: %s", one_line(error))
        return ""
    place.write_text(url + "\n", encoding="utf-8")
    return url


def _made(entity: str, project: str, study: str) -> str:
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces import workspaces

    charts: list[Any] = [panels.BarPlot(title=name, metrics=[name]) for name in _CHARTS]
    layers: list[Any] = [panels.LinePlot(title="KL gap by layer, nats", x="layer", y=[_CURVE])]
    steps: list[Any] = [panels.LinePlot(x="checkpoint_step", y=[f"trajectory/{name}"]) for name in _CHARTS]
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"semcal {study}",
        sections=[
            workspaces.Section(name="Headline figures", panels=charts, is_open=True),
            workspaces.Section(name="Layers", panels=layers, is_open=True),
            workspaces.Section(name="Checkpoints", panels=steps),
        ],
        runset_settings=workspaces.RunsetSettings(filters=[workspaces.Metric("Group") == study]),
    )
    view.save()
    return str(view.url)
