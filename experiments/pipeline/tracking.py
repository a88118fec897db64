"""Weights & Biases: one W&B run for each run folder, logged once its figures exist."""

from __future__ import annotations

import secrets

from experiments.config.study import Cell
from experiments.report.summary_table import headline
from semcal.errors import UserError
from semcal.runs.files import content_key
from semcal.runs.run import Run


def track(cell: Cell, run: Run) -> None:
    """Log configuration, headline figures, the layer table and the figures of a run; a second call with the same
    results does nothing.

    Offline runs are in `RUN/wandb`; `wandb sync` sends them.

    Raises:
        UserError: W&B cannot be reached or does not know the user (online only).
    """
    import wandb

    figures = headline(run)
    key = content_key(figures, cell.tracking.model_dump())
    manifest = run.manifest()
    if manifest.get("tracked") == key:
        return
    tracking_id = manifest.get("tracking_id") or secrets.token_hex(4)
    manifest = manifest | {"tracking_id": tracking_id}
    run.write_manifest(manifest)
    try:
        tracked = wandb.init(
            id=tracking_id,
            resume="allow",
            project=cell.tracking.project,
            entity=cell.tracking.entity,
            group=cell.study,
            name=run.name,
            config=cell.model_dump(mode="json"),
            dir=str(run.folder),
            mode=cell.tracking.wandb,
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        )
    except wandb.Error as error:
        raise UserError(f"W&B: {error}; set tracking.wandb to offline, or run `wandb login`") from error
    with tracked:
        tracked.summary.update({k: v for k, v in figures.items() if v is not None})
        probes = run.probes()
        if not probes.empty:
            tracked.log({"probes": wandb.Table(dataframe=probes)})
        for picture in sorted((run.folder / "figures").glob("*.png")):
            tracked.log({f"figures/{picture.stem}": wandb.Image(str(picture))})
    run.write_manifest(manifest | {"tracked": key})
