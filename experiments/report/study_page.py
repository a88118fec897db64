"""A study as one self-contained HTML page: a table of its runs, figures over runs, and a link to every run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.config.study import Cell
from experiments.report.captions import CAPTIONS
from experiments.report.html_page import Picture, gallery, html_table, save_figures, shown_path, write_page
from experiments.report.summary_table import COLUMNS, cells_of, headline, labels, last_layer, remarks
from probes.plots.emergence import emergence_curve
from probes.plots.predictability import predictability_scatter
from semcal.calibration.plots.curves import by_model
from semcal.runs.run import Run

HEADLINES = ("reliability", "layers", "commitment")  # of each run, where it has them
_FEWEST = 2  # runs in a figure over runs


def write_study(name: str, rows: Sequence[tuple[Cell, Run]], folder: Path) -> None:
    """Write report.html and figures/ (models, predictability; along training, emergence) into the folder of a study.

    Args:
        rows: the runs that are scored, in the order of the page.
    """
    figures = {"models": models(rows), "predictability": predictability(rows), "emergence": emergence(rows)}
    pictures = save_figures({name: f for name, f in figures.items() if f is not None}, folder / "figures")
    names = labels([cell for cell, _ in rows])
    # Relative, so that the folder may be moved or served.
    links = [Path(os.path.relpath(run.folder / "report.html", folder)).as_posix() for _, run in rows]
    summary = pd.DataFrame([{"run": n} | cells_of(headline(run)) for n, (_, run) in zip(names, rows, strict=True)])
    write_page(
        folder / "report.html",
        "study.html",
        title=name,
        facts=f"{len(rows)} runs: {_grid([cell for cell, _ in rows])}.",
        summary=html_table(summary.rename(columns=COLUMNS), links=links),
        figures=gallery(pictures, CAPTIONS),
        runs=[
            {"name": n, "link": link, "facts": _facts(cell, run, folder), "figures": _pictures(run)}
            for n, link, (cell, run) in zip(names, links, rows, strict=True)
        ],
        remarks=[f"{n}: {said}" for n, row in zip(names, rows, strict=True) for said in remarks(*row)],
    )


def predictability(rows: Sequence[tuple[Cell, Run]]) -> Figure | None:
    """Excess calibration error against what probes explain, over runs; None unless two runs have both."""
    names = labels([cell for cell, _ in rows])
    frame = pd.DataFrame([_place(name, *row) for name, row in zip(names, rows, strict=True)])
    frame = frame.dropna(subset=["explained", "excess"])
    if len(frame) < _FEWEST:
        return None
    measure = "share of the noise ceiling that a linear probe explains"
    return predictability_scatter(
        frame, title="Predictability and calibration error, by run", measure=measure, seed=rows[0][0].seed
    )


def models(rows: Sequence[tuple[Cell, Run]]) -> Figure | None:
    """Accuracy, signed gap and excess of each model; None for one model, or models along training."""
    if len({cell.model.name for cell, _ in rows}) < _FEWEST or any(cell.model.step is not None for cell, _ in rows):
        return None
    several_b = len({cell.semantics.label for cell, _ in rows}) > 1
    marks = []
    for cell, run in rows:
        line = (cell.dataset.name, cell.style, *([cell.semantics.label] if several_b else []))
        place = _place("", cell, run) | _gap(run.calibration())
        marks.append(place | {"model": cell.model.name, "line": " · ".join(line)})
    return by_model(pd.DataFrame(marks), title="Accuracy and calibration, by model")


def _gap(calibration: dict[str, Any]) -> dict[str, float]:
    """Accuracy, and the signed gap by mass where it is known: by counts it is too large at finite M."""
    ends = ("", "_low", "_high")
    best = next((row for row in calibration.get("finite_m") or [] if row["estimator"] == "by mass"), calibration)
    found = {f"accuracy{end}": calibration[f"accuracy{end}"] for end in ends}
    return found | {f"signed_gap{end}": best[f"signed_gap{end}"] for end in ends}


def emergence(rows: Sequence[tuple[Cell, Run]]) -> Figure | None:
    """Predictability and excess along training; None unless there are runs of two training steps."""
    stepped = [(cell, run) for cell, run in rows if cell.model.step is not None]
    if len({cell.model.step for cell, _ in stepped}) < _FEWEST:
        return None
    places = [
        _place("", cell, run) | {"step": cell.model.step, "line": f"{cell.dataset.name} · {cell.style}"}
        for cell, run in stepped
    ]
    return emergence_curve(pd.DataFrame(places), title="Predictability and calibration error along training")


def _place(name: str, cell: Cell, run: Run) -> dict[str, Any]:
    """One run's mark: a share of its own ceiling, and the excess with the interval of smECE, its null counting as
    known."""
    calibration, last = run.calibration(), last_layer(run.probes(), "classes") or {}
    shares = {to: last.get(of, float("nan")) for to, of in _OF_CEILING.items()}
    null = calibration["null_mean"]
    ends = {f"excess_{end}": calibration[f"smece_{end}"] - null for end in ("low", "high")}
    return {"label": name, "style": cell.style, "excess": calibration["excess"]} | shares | ends


_OF_CEILING = {"explained": "of_ceiling", "low": "of_ceiling_low", "high": "of_ceiling_high"}


def _facts(cell: Cell, run: Run, folder: Path) -> str:
    calibration = run.calibration()
    model = shown_path(cell.model.path, folder)
    return f"{calibration['n']} questions; B: {calibration['semantics']}; model {model}."


def _pictures(run: Run) -> list[Picture]:
    """The headline figures of one run, from its folder."""
    files = {n: run.folder / "figures" / f"{n}.png" for n in HEADLINES}
    return gallery({n: path.read_bytes() for n, path in files.items() if path.is_file()}, {})


def _grid(cells: Sequence[Cell]) -> str:
    """What varies over the runs, in words."""
    parts = {
        "models": [c.model.name for c in cells],
        "datasets": [c.dataset.name for c in cells],
        "styles": [c.style for c in cells],
        "B": [c.semantics.label for c in cells],
    }
    return "; ".join(f"{what} {', '.join(dict.fromkeys(names))}" for what, names in parts.items())
