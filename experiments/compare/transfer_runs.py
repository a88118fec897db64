"""Probes of some runs tried on each other: what may be tried, read from run folders, or refused; table and files.

The statistics are in `probes.transfer`, the figure in `probes.plots.heatmaps`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.compare.pairs import Scored
from experiments.probe.open_classes import MOST_POOLED, features_of
from experiments.probe.probed import probe_device
from experiments.report.figures.figure_files import save_figures
from experiments.report.summary_table import interval, labels, number
from experiments.sample.models import Models
from experiments.terminal.fitted_table import FittedTable
from probes.plots.heatmaps import transfer_matrix
from probes.targets.closed import class_targets, share_target
from probes.targets.open import open_entropies, open_targets
from probes.targets.scalars import b_confidence
from probes.transfer.across_runs import ProbedRun, TransferCell, transfer
from probes.transfer.read_outs import ClosedClasses, Confidence, OpenClasses, ReadOut
from semcal.arrays import FloatArray
from semcal.errors import UserError, nearest
from semcal.positions import LAST_PROMPT_TOKEN, block_of
from semcal.runs.files import replacing, write_atomically
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable

TARGETS = ("classes", "b_confidence")
_READ_OUTS = {
    ClosedClasses: ("linear", "of the class distribution", "the marginal"),
    OpenClasses: ("bilinear", "of the class distribution, over the classes of all runs", "candidates alone"),
    Confidence: ("linear", 'of B-confidence, "the top class, or another"', "its mean"),
}


@dataclass(frozen=True)
class Transferred:
    """Probes of some runs tried on each other: one cell per probe and run, row by row of the matrix.

    Attributes:
        layers: [run], at the last prompt token.
        probe: linear or bilinear; `predicts` and `without` are in words what it predicts, and what is left of it
            without activations.
        mapped: whether runs of different models are among them.
    """

    cells: list[TransferCell]
    layers: list[str]
    probe: str
    predicts: str
    without: str
    mapped: bool


def transfer_runs(runs: Sequence[Scored], *, layer: str | None = None, target: str = "classes") -> Transferred:
    """Every run's probe on every run; settings (folds, classes, bootstrap, level, seed) are those of the first.

    Args:
        runs: at least 2, scored and captured at the last prompt token.
        layer: hook name in the first run; None: its last. Another model's layer is the one at the same relative depth.
        target: "classes", closed or open as `probes.target` of the first run says (auto: open where over 5 % of the
            mass of all runs together would be pooled), or "b_confidence", whatever the classes are.

    Raises:
        UserError: runs without activations, no common layer, models without a question in common, too few groups.
    """
    if target not in TARGETS:
        raise UserError(f"unknown target {target!r}{nearest(target, TARGETS)}; one of {', '.join(TARGETS)}")
    folders, cell = [Run(run.folder) for run in runs], runs[0].cell
    known = [folder.activations(LAST_PROMPT_TOKEN).layers for folder in folders]
    widths = [folder.activations(LAST_PROMPT_TOKEN).width[0] for folder in folders]
    spaces = _spaces(runs, widths, known)
    layers = _layers(runs, known, spaces, layer)
    tables = [folder.class_table() for folder in folders]
    try:
        probed = [
            ProbedRun(
                name,
                folder.activations(LAST_PROMPT_TOKEN).layer(own),
                table.groups.tolist(),
                [f"{run.cell.style} {question}" for question in table.questions],
                space,
            )
            for name, run, folder, own, table, space in zip(
                _names(runs), runs, folders, layers, tables, spaces, strict=True
            )
        ]
        read_out = _read_out(runs, folders, tables, target)
        resampling = cell.calibration.resampling(cell.seed)
        cells = transfer(probed, read_out, folds=cell.probes.folds, resampling=resampling)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Transferred(cells, layers, *_READ_OUTS[type(read_out)], len(set(spaces)) > 1)


def _read_out(runs: Sequence[Scored], folders: Sequence[Run], tables: Sequence[ClassTable], target: str) -> ReadOut:
    if target == "b_confidence":
        shares = [share_target(b_confidence(table), name="sure", m=table.m) for table in tables]
        return Confidence(shares, open_targets(tables))
    probes = runs[0].cell.probes
    closed = class_targets(tables, max_classes=max(run.cell.probes.max_classes for run in runs))
    pooled = float(np.average([own.pooled for own in closed], weights=[len(own) for own in closed]))
    if probes.target == "closed" or (probes.target == "auto" and pooled <= MOST_POOLED):
        return ClosedClasses(closed)
    opened, models, embedded = open_targets(tables), Models(), dict[str, FloatArray]()
    keys = [run.cell.model.model_dump_json(exclude={"name"}) + run.cell.probes.encoder for run in runs]
    for key, run, folder in sorted(zip(keys, runs, folders, strict=True), key=lambda each: each[0]):
        if key not in embedded:
            found = features_of(run.cell, folder, opened[0].classes, models)
            embedded[key] = np.stack([found[label] for label in opened[0].classes])
    known, features = [open_entropies(table) for table in tables], [embedded[key] for key in keys]
    return OpenClasses(opened, known, features, probe_device(probes.device))


def _spaces(runs: Sequence[Scored], widths: Sequence[int], known: Sequence[Sequence[str]]) -> list[str]:
    """[run] what its activations are of: models of one width and number of blocks, and of one lineage where all of
    these tell theirs."""
    sizes = [f"{width} × {_blocks(own)}" for width, own in zip(widths, known, strict=True)]
    lineages = [run.cell.model.lineage for run in runs]
    told = {size: all(own for own, s in zip(lineages, sizes, strict=True) if s == size) for size in sizes}
    return [f"{size} {own}" if told[size] else size for size, own in zip(sizes, lineages, strict=True)]


def _blocks(layers: Sequence[str]) -> int:
    """The number of blocks, as far as they were captured."""
    return 1 + max((block for name in layers if (block := block_of(name)) is not None), default=0)


def _layers(
    runs: Sequence[Scored], known: Sequence[Sequence[str]], spaces: Sequence[str], layer: str | None
) -> list[str]:
    """[run] the layer to read: one of the first run, by name in runs of its space, by relative depth in others."""
    own = [names for names, space in zip(known, spaces, strict=True) if space == spaces[0]]
    common = [name for name in known[0] if all(name in names for names in own)]
    if not common:
        raise UserError(f"{runs[0].folder} and the others have no layer in common; capture the same hooks in all")
    if layer is not None and layer not in common:
        raise UserError(f"some runs lack layer {layer!r}{nearest(layer, common)}; they share {', '.join(common)}")
    odd = next((i for i, names in enumerate(known) if spaces[i] == spaces[0] and names[-1] != known[0][-1]), None)
    if layer is None and odd is not None:
        raise UserError(
            f"the last layer is {known[0][-1]} in {runs[0].folder} and {known[odd][-1]} in {runs[odd].folder}; name "
            f"one of those they share with --layer: {', '.join(common)}"
        )
    chosen = layer or known[0][-1]
    depth = _depth(chosen, _blocks(known[0]))
    found = []
    for run, names, space in zip(runs, known, spaces, strict=True):
        alike = [name for name in names if name.partition(".hook_")[2] == chosen.partition(".hook_")[2]]
        if space == spaces[0]:
            found.append(chosen)
        elif alike:
            found.append(min(alike, key=lambda name: abs(_depth(name, _blocks(names)) - depth)))
        else:
            raise UserError(
                f"{run.folder} has no layer like {chosen} of {runs[0].folder}; capture the same hooks in all"
            )
    return found


def _depth(layer: str, blocks: int) -> float:
    """0 in the first block, 1 in the last."""
    return (block_of(layer) or 0) / max(1, blocks - 1)


def _names(runs: Sequence[Scored]) -> list[str]:
    """Labels as in the summary table; equal ones are distinguished by study and a number."""
    names = labels([run.cell for run in runs])
    longer = [f"{n} · {r.cell.study}" if names.count(n) > 1 else n for n, r in zip(names, runs, strict=True)]
    return [
        f"{name} ({longer[: i + 1].count(name)})" if longer.count(name) > 1 else name for i, name in enumerate(longer)
    ]


def transfer_table(found: Transferred) -> FittedTable:
    """One row per run trained on, one column per run tested on."""
    names = list(dict.fromkeys(cell.tested_on for cell in found.cells))
    table = FittedTable(("trained on ↓, tested on →", *names))
    rows = [found.cells[start : start + len(names)] for start in range(0, len(found.cells), len(names))]
    for row in rows:
        table.add_row(row[0].trained_on, *(interval(cell.gap, cell.low, cell.high) for cell in row))
        added = (interval(cell.added, cell.added_low, cell.added_high, "+") for cell in row)
        table.add_row("  activations add", *added, style="dim")
    table.add_section()
    table.add_row(f"{found.without}, own", *(number(row[i].alone) for i, row in enumerate(rows)))
    table.add_row("perfect, 95 %", *(number(cell.floor_q95) for cell in rows[0]))
    return table


def explanation(found: Transferred) -> str:
    """What the numbers are, printed below the table."""
    layers = list(dict.fromkeys(found.layers))
    said = (
        f"KL gap {found.predicts}, nats, of a {found.probe} probe at {', '.join(layers)}, last prompt token · "
        f"activations add: what the same training questions leave without activations ({found.without}) minus that; "
        "below 0 they mislead · folds are made of groups over all runs: no probe is tested on a group that it was "
        "trained on, and the diagonal is cross-validated"
    )
    if found.mapped:
        maps = {(c.shared, c.rank, round(c.mapped, 2)): c for c in found.cells if c.shared}
        each = "; ".join(
            f"{c.tested_on} to {c.trained_on}: rank {c.rank}, r² {c.mapped:.2f} held out" for c in maps.values()
        )
        shared = ", ".join(str(n) for n in sorted({c.shared for c in maps.values()}))
        said += (
            " · different models: layers at the same relative depth, and activations of the run tested on mapped to "
            f"those of the run trained on by reduced-rank ridge regression, learnt outside each fold from the {shared} "
            f"questions that both were asked in one style ({each})"
        )
    worst = min(found.cells, key=lambda cell: cell.covered)
    if worst.covered < 0.9:
        unseen = (
            "the others are known to the probe by their texts alone"
            if found.probe == "bilinear"
            else "a linear probe cannot name classes it never saw; set probes.target to open"
        )
        said += (
            f" · the classes of {worst.trained_on} hold {worst.covered:.0%} of the mass of {worst.tested_on}; {unseen}"
        )
    return said


def write_transfer(found: Transferred, folder: Path, width: float | None = None) -> None:
    """Write transfer.csv, and transfer.png, .svg and .pdf, `width` inches wide if given."""
    n = len(found.layers)
    table = pd.DataFrame([asdict(cell) for cell in found.cells]).assign(
        probe=found.probe,
        predicts=found.predicts,
        trained_layer=[own for own in found.layers for _ in range(n)],
        tested_layer=found.layers * n,
    )
    title = f"{found.probe.capitalize()} probes, last prompt token\n{', '.join(dict.fromkeys(found.layers))}"
    figure = transfer_matrix(found.cells, title=title, without=found.without, width=width)
    with replacing(folder) as staged:
        write_atomically(staged / "transfer.csv", lambda path: table.to_csv(path, index=False))
        save_figures({"transfer": figure}, staged)
