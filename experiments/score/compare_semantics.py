"""The same samples under several collapsing functions: calibration under each, and how far they agree."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.config.collapsing_functions import SemanticsConfig, collapse_of
from experiments.config.run_folder import LOOKS
from experiments.config.study import Cell
from experiments.score.score import Read, class_table, measure, read_answers
from experiments.terminal.fitted_table import FittedTable
from semcal.calibration.summary import Calibration
from semcal.errors import UserError
from semcal.questions.named.named_datasets import why_not
from semcal.runs.files import content_key, plain, write_atomically
from semcal.runs.run import Run
from semcal.semantics.agreement import adjusted_rand


@dataclass(frozen=True)
class Pair:
    """Two collapsing functions on the same samples: mean over questions of the adjusted Rand index of their classes,
    share of questions that they classify in the same way, and figures under b minus those under a."""

    a: str
    b: str
    rand: float
    same: float
    smece_change: float
    accuracy_change: float


@dataclass(frozen=True)
class Agreement:
    """Calibration under each B, the mean number of classes per question, and how far the Bs agree."""

    calibration: dict[str, Calibration]
    classes: dict[str, float]
    pairs: tuple[Pair, ...]


def compare(
    cell: Cell, run: Run, chosen: Sequence[SemanticsConfig], tell: Callable[[str], None] = lambda _: None
) -> Agreement:
    """Read a run's samples with each B; writes nothing.

    Raises:
        UserError: fewer than two Bs, one that the dataset refuses, or a run whose answers were enumerated.
    """
    if len({c.label for c in chosen}) < 2:
        raise UserError("--semantics compares at least two different Bs; separate their names by commas")
    if cell.enumerated:
        raise UserError(
            f"{run.folder} was enumerated, but agreement counts samples; choose a run without sampling.exact"
        )
    if reason := next((r for c in chosen if (r := why_not(cell.dataset.kind, c.kind))), None):
        raise UserError(f"--semantics: {reason}")
    read = {c.label: read_answers(cell, run, collapse_of(c, run.aliases(), tell)) for c in chosen}
    tables = {name: class_table(cell, run.questions(), answers) for name, answers in read.items()}
    resampling = cell.calibration.resampling(cell.seed)
    calibration = {name: measure(tables[name], answers, resampling) for name, answers in read.items()}
    classes = {name: table.mean_classes for name, table in tables.items()}
    pairs = tuple(_pair(a, b, read, calibration) for a, b in itertools.combinations(read, 2))
    return Agreement(calibration, classes, pairs)


def write_agreement(found: Agreement, run: Run) -> Path:
    """Write looks/agreement-KEY.json into a run; other figures have another key."""
    key = content_key(plain(asdict(found)))[:8]
    path = run.folder / LOOKS / f"agreement-{key}.json"
    text = json.dumps(plain(asdict(found)), indent=1) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path


def _pair(a: str, b: str, read: dict[str, list[Read]], calibration: dict[str, Calibration]) -> Pair:
    rand = np.array([adjusted_rand(x.classes, y.classes, x.weights) for x, y in zip(read[a], read[b], strict=True)])
    before, after = calibration[a], calibration[b]
    changes = after.smece - before.smece, after.accuracy - before.accuracy
    return Pair(a, b, float(rand.mean()), float((rand > 1 - 1e-9).mean()), *changes)


def agreement_table(found: Agreement) -> tuple[FittedTable, FittedTable]:
    """A table of the Bs and a table of their pairs."""
    alone = FittedTable(("B", "smECE", "excess", "accuracy", "confidence", "unparsed", "classes per question"))
    for name, c in found.calibration.items():
        figures = (f"{c.smece:.3f} [{c.smece_low:.3f}, {c.smece_high:.3f}]", f"{c.excess:+.3f}", f"{c.accuracy:.3f}")
        alone.add_row(name, *figures, f"{c.confidence:.3f}", f"{c.unparsed_share:.1%}", f"{found.classes[name]:.1f}")
    pairs = FittedTable(("A", "B", "adjusted Rand", "same classes", "Δ smECE", "Δ accuracy"), left=2)
    for p in found.pairs:
        pairs.add_row(p.a, p.b, f"{p.rand:.3f}", f"{p.same:.1%}", f"{p.smece_change:+.3f}", f"{p.accuracy_change:+.3f}")
    return alone, pairs
