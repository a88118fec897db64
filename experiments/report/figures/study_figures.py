"""The figures of a study, over its runs: models compared, calibration against the KL gap, and along training.

Knows runs and how they are configured; the figures themselves are in `semcal.calibration.plots` and `probes.plots`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.compare.probe_rows import WHOLE_MODEL, last_layer, last_row, probe_table
from experiments.config.study import Cell
from experiments.report.summary_table import labels
from experiments.verdict.rules import SMALL_GAP
from probes.plots.measures import GAP
from probes.plots.predictability import emergence_curve, predictability_scatter
from probes.targets.closed import MOST_POOLED
from semcal.calibration.plots.curves import by_model
from semcal.calibration.plots.palette import STYLES
from semcal.runs.run import Run

_LORA = {"generative": "generative LoRA", "lora": "LoRA with a head"}
PROPER = ("base", "sft")  # stages trained by a proper loss
_STAGES = ("base", "sft", "dpo", "grpo", "rl", "instruct")  # in the order of training

Rows = Sequence[tuple[Cell, Run]]


def study_figures(rows: Rows, width: float | None = None) -> dict[str, Figure]:
    """Those that these runs have, by name: "models", "predictability", "emergence"; `width` in inches, None for their
    own."""
    ordered = in_order(rows)
    drawn = {name: draw(ordered, width) for name, draw in _DRAWN.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def in_order(rows: Rows) -> list[tuple[Cell, Run]]:
    """Runs in the order of every figure: lineages as they first occur, in each the stages of training, then models and
    datasets as they first occur, and styles from the shortest answer to the longest."""
    firsts = [_firsts([of(cell) for cell, _ in rows]) for of in (_lineage, _model, _dataset)]

    def place(row: tuple[Cell, Run]) -> tuple[int, ...]:
        cell = row[0]
        lineage, model, dataset = (f[of(cell)] for f, of in zip(firsts, (_lineage, _model, _dataset), strict=True))
        stage = _STAGES.index(cell.model.stage) if cell.model.stage in _STAGES else len(_STAGES)
        return lineage, stage, model, dataset, STYLES.index(cell.style)

    return sorted(rows, key=place)


def _firsts(names: Sequence[str]) -> dict[str, int]:
    return {name: at for at, name in enumerate(dict.fromkeys(names))}


def _lineage(cell: Cell) -> str:
    return cell.model.lineage


def _step(cell: Cell) -> int | None:
    return cell.model.step


def _model(cell: Cell) -> str:
    return cell.model.name


def _dataset(cell: Cell) -> str:
    return cell.dataset.name


def predictability(rows: Rows, width: float | None = None) -> Figure | None:
    """Excess calibration error against the KL gap, over runs; None unless two runs have both."""
    found = _places(rows)
    if len(found.frame.dropna(subset=["gap", "excess"])) < 2:
        return None
    limits = _limits(rows)
    how = {"probe": found.probe, "width": width}
    return predictability_scatter(found.frame, title="KL gap and calibration error, by run", **limits, **how)


def models(rows: Rows, width: float | None = None) -> Figure | None:
    """Accuracy, signed gap and excess of each model; None for one model, or models along training."""
    if len({cell.model.name for cell, _ in rows}) < 2 or any(cell.model.step is not None for cell, _ in rows):
        return None
    several_b = len({cell.semantics.label for cell, _ in rows}) > 1
    marks = []
    for cell, run in rows:
        line = (cell.dataset.name, cell.style, *([cell.semantics.label] if several_b else []))
        place = _excess(run) | _signed_gap(run.calibration())
        marks.append(place | {"model": cell.model.name, "line": " · ".join(line)})
    delta = _limits(rows)["delta"]
    return by_model(pd.DataFrame(marks), title="Accuracy and calibration, by model", delta=delta, width=width)


def _signed_gap(calibration: dict[str, Any]) -> dict[str, float]:
    """Accuracy, and the signed gap by mass where it is known: by counts it is too large at finite M."""
    ends = ("", "_low", "_high")
    best = next((row for row in calibration.get("finite_m") or [] if row["estimator"] == "by mass"), calibration)
    found = {f"accuracy{end}": _known(calibration[f"accuracy{end}"]) for end in ends}
    return found | {f"signed_gap{end}": _known(best[f"signed_gap{end}"]) for end in ends}


def _known(value: float | None) -> float:
    """A stored figure; NaN where it could not be computed, as intervals of a single group."""
    return math.nan if value is None else value


def emergence(rows: Rows, width: float | None = None) -> Figure | None:
    """Predictability and excess along training; None unless there are runs of two training steps."""
    stepped = [(cell, run) for cell, run in rows if cell.model.step is not None]
    if len({cell.model.step for cell, _ in stepped}) < 2:
        return None
    found = _places(stepped)
    lines = [f"{cell.dataset.name} · {cell.style}" for cell, _ in stepped]
    steps, lineages = ([of(cell) for cell, _ in stepped] for of in (_step, _lineage))
    frame = found.frame.assign(step=steps, lineage=lineages, line=lines)
    how = {"probe": found.probe, "width": width}
    return emergence_curve(frame, title="KL gap and calibration error along training", **_limits(stepped), **how)


def _limits(rows: Rows) -> dict[str, Any]:
    """What counts: an error above delta, where all runs were scored with one, and a gap below SMALL_GAP."""
    deltas = {cell.calibration.delta for cell, _ in rows}
    return {"delta": deltas.pop() if len(deltas) == 1 else None, "small_gap": SMALL_GAP}


@dataclass(frozen=True)
class _Places:
    """Marks of runs: KL gap of one probe, named in words, and excess with the interval of smECE."""

    probe: str
    frame: pd.DataFrame


def _places(rows: Rows) -> _Places:
    """By LoRA on the whole model where all runs with a gap have it, else by the probe of the last layer. A gap with
    more than MOST_POOLED of the mass pooled says how much is pooled, and is left out, as in the verdict."""
    tables = [probe_table(run) for _, run in rows]
    layers = [_legible(last_layer(table, "classes")) for table in tables]
    probe = f"{' or '.join(sorted({row['rung'] for row in layers if row})) or 'linear'} probe, last layer"
    found = layers
    for rung in WHOLE_MODEL:
        whole = [_legible(last_row(table, "classes", rung)) for table in tables]
        if any(whole) and all(row for row, layer in zip(whole, layers, strict=True) if layer):
            probe, found = _LORA[rung], whole
            break
    natural = {cell.model.path for cell, _ in rows if _is_natural(cell)}
    places = [
        {
            "label": name,
            "style": cell.style,
            "kin": _lineage(cell) or _model(cell),
            "place": _place(cell),
            "proper": cell.model.stage in PROPER,
            "fitted": cell.model.stage in PROPER and (_is_natural(cell) or cell.model.path not in natural),
        }
        | {column: row.get(column, math.nan) for column in GAP.columns}
        | _excess(run)
        for name, (cell, run), row in zip(labels([cell for cell, _ in rows]), rows, found, strict=True)
    ]
    return _Places(probe, pd.DataFrame(places))


def _place(cell: Cell) -> str:
    """What cells of different lineages have in common, as in the verdict."""
    model = cell.model
    return " · ".join(map(str, (cell.dataset.name, cell.style, model.stage, model.arm, model.prompt)))


def _is_natural(cell: Cell) -> bool:
    """Whether a model is asked as it was trained to be; as in the verdict, weights asked in two ways count once."""
    return cell.model.prompt == ("few-shot" if cell.model.stage == "base" else "chat")


def _legible(row: dict[str, Any] | None) -> dict[str, Any]:
    """A row of probes whose KL gap says what is answered; empty for others."""
    return {} if row is None or math.isnan(row["gap"]) or row["pooled"] > MOST_POOLED else row


def _excess(run: Run) -> dict[str, float]:
    calibration = run.calibration()
    null = calibration["null_mean"]
    ends = {f"excess_{end}": _known(calibration[f"smece_{end}"]) - null for end in ("low", "high")}
    return {"excess": calibration["excess"]} | ends


_DRAWN = {"models": models, "predictability": predictability, "emergence": emergence}
