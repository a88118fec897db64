"""What `semcal compare`, `verdict` and `train` tell W&B: each command is one run of it, and the same command again goes
on with that run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compare.compare_runs import Comparison, adjusted
from experiments.config.run_folder import run_of
from experiments.config.study import Cell, Study, TrackingConfig
from experiments.pipeline.tracking.artifacts import stage_artifact, verdict_artifact
from experiments.pipeline.tracking.names import figures, trajectory
from experiments.pipeline.tracking.session import STOPPED_S, About, Session, open_session
from experiments.pipeline.tracking.workspace import workspace
from experiments.train.checkpoints import Progress
from experiments.verdict.study_verdict import Judgement
from semcal.calibration.inference.paired import Difference
from semcal.runs.files import content_key
from semcal.runs.run import Run


def log_comparisons(comparisons: Sequence[Comparison]) -> Path | None:
    """Log pairs of runs as one table, if the first of them is tracked; returns the folder whose `wandb` holds it."""
    first = comparisons[0].a
    if first.tracking.wandb == "disabled":
        return None
    folder = Path(first.folder).parent
    names = list(dict.fromkeys(Path(cell.folder).name for c in comparisons for cell in (c.a, c.b)))
    about = About(
        _id("compare", first.study, names), f"compare {len(comparisons)}", "compare", first.study, [], {"runs": names}
    )
    rows = [
        {"first": Path(c.a.folder).name, "second": Path(c.b.folder).name} | _row(name, d, holm[key])
        for c, holm in zip(comparisons, adjusted(comparisons), strict=True)
        for name, key, d in [
            *((name, name, d) for name, d in c.differences.items()),
            *((f"kl_gap_{rung}", rung, d) for rung, d in c.predictability.items()),
        ]
    ]
    with _session(first.tracking, about, folder) as session:
        for cell in {cell.folder: cell for c in comparisons for cell in (c.a, c.b)}.values():
            _read_results(session, cell, Run(cell.folder))
        _log_table(session, "comparison", rows)
        if len(comparisons) == 1:
            session.summarise(
                {f"difference/{row['figure']}{end}": row[key] for row in rows for end, key in _ENDS.items()}
            )
    return folder


_ENDS = {"": "difference", "_low": "low", "_high": "high", "_p": "p", "_p_holm": "p_holm"}


def _row(name: str, d: Difference, holm: float) -> dict[str, Any]:
    found = {"first_value": d.a, "second_value": d.b, "difference": d.estimate, "low": d.low, "high": d.high}
    return {"figure": name} | found | {"p": d.p_value, "p_holm": holm, "p_exchange": d.p_exchange}


def log_verdict(judgement: Judgement, folder: Path, names: Sequence[str]) -> str | None:
    """Log the verdict of a study, its figure and files, and its checkpoints over their steps.

    Returns:
        The address of the study's workspace, "" where there is none; None if the study is not tracked.
    """
    import wandb

    study = judgement.study
    if study.tracking.wandb == "disabled":
        return None
    verdicts = judgement.to_dict()["hypotheses"]
    keys = ("key", "claim", "decision", "p", "p_holm", "p_against", "p_against_holm", "reason")
    about = About(_id("verdict", study.name, str(folder.name)), f"verdict {study.name}", "verdict", study.name)
    with _session(study.tracking, about, folder) as session:
        runs = [(cell, run) for cell in study.cells() if (run := run_of(cell)).calibration()]
        for cell, run in runs:
            _read_results(session, cell, run)
        _log_trajectories(session, study, runs)
        pictures = {Path(n).stem: wandb.Image(str(folder / n)) for n in names if n.endswith(".png")}
        _log_table(session, "verdict", [{key: v[key] for key in keys} for v in verdicts], pictures)
        session.writes(verdict_artifact(study.name, folder, names))
        decided = {f"verdict/{v['key']}": v["decision"] for v in verdicts}
        session.summarise(decided | {f"verdict/{v['key']}_p": v["p_holm"] for v in verdicts})
        place = session.place
    return "" if place is None else workspace(*place, study.name, folder)


def _log_trajectories(session: Session, study: Study, runs: Sequence[tuple[Cell, Run]]) -> None:
    """Every checkpoint of the study in one run of W&B, so that one panel shows each lineage along training."""
    session.by("trajectory/*", "checkpoint_step")
    for cell, run in sorted(runs, key=lambda row: row[0].model.step or 0):
        line = trajectory(cell, figures(run))
        where = "/".join(
            filter(None, (cell.model.lineage or study.name, cell.dataset.name, cell.style, cell.model.arm))
        )
        if line:
            session.log({k.replace("trajectory/", f"trajectory/{where}/"): v for k, v in line.items()})


@contextmanager
def training_tracked(name: str, folder: Path) -> Iterator[Callable[[Progress], None]]:
    """Hears the steps of a training. They go to W&B where its own variable WANDB_MODE is set to online or offline, and
    otherwise nowhere: a training belongs to no study that could say so."""
    mode = os.environ.get("WANDB_MODE", "disabled")
    tracking = TrackingConfig(wandb=mode if mode in ("online", "offline") else "disabled")  # pyright: ignore
    about = About(_id("train", name, str(folder.resolve())), name, "train", folder.name)
    with _session(tracking, about, folder) as session:
        session.by("train/*", "train/step")

        def hear(step: Progress) -> None:
            session.log({f"train/{key}": value for key, value in asdict(step).items() if key != "said"})

        yield hear


@contextmanager
def _session(tracking: TrackingConfig, about: About, folder: Path) -> Iterator[Session]:
    session = Session(None) if tracking.wandb == "disabled" else open_session(tracking, about, folder)
    try:
        yield session
    except BaseException:
        session.close(1, STOPPED_S)
        raise
    session.close()


def _id(*parts: Any) -> str:
    return content_key(parts)[:8]


def _read_results(session: Session, cell: Cell, run: Run) -> None:
    for stage in ("classes", "probes"):
        if (made := stage_artifact(cell, run, stage)) is not None:
            session.reads(made)


def _log_table(
    session: Session, name: str, rows: Sequence[dict[str, Any]], pictures: dict[str, Any] | None = None
) -> None:
    import wandb

    shown = {f"figures/{key}": picture for key, picture in (pictures or {}).items()}
    session.log({f"tables/{name}": wandb.Table(dataframe=pd.DataFrame(rows))} | shown)
