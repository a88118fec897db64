"""The same samples under several collapsing functions: calibration under each, and how far they agree."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich import box
from rich.table import Table

from experiments.config.collapsing_functions import SemanticsConfig, collapse_of
from experiments.config.study import Cell
from experiments.score.score import Read, class_table, measure, read_answers
from semcal.calibration.summary import Calibration
from semcal.errors import UserError
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
    """Read a run's samples with each B and write agreement.json. The run's own results stay unchanged.

    Raises:
        UserError: fewer than two Bs, or a run whose answers were enumerated instead of sampled.
    """
    if len({c.label for c in chosen}) < 2:
        raise UserError("--semantics compares at least two different Bs; separate their names by commas")
    if cell.enumerated:
        raise UserError(
            f"{run.folder} was enumerated, but agreement counts samples; choose a run without sampling.exact"
        )
    read = {c.label: read_answers(cell, run, collapse_of(c, run.aliases(), tell)) for c in chosen}
    tables = {name: class_table(cell, run.questions(), answers) for name, answers in read.items()}
    resampling = cell.calibration.resampling(cell.seed)
    calibration = {name: measure(tables[name], answers, resampling) for name, answers in read.items()}
    classes = {name: table.mean_classes for name, table in tables.items()}
    pairs = tuple(_pair(a, b, read, calibration) for a, b in itertools.combinations(read, 2))
    found = Agreement(calibration, classes, pairs)
    run.write_agreement(asdict(found))
    return found


def _pair(a: str, b: str, read: dict[str, list[Read]], calibration: dict[str, Calibration]) -> Pair:
    rand = np.array([adjusted_rand(x.classes, y.classes, x.weights) for x, y in zip(read[a], read[b], strict=True)])
    before, after = calibration[a], calibration[b]
    changes = after.smece - before.smece, after.accuracy - before.accuracy
    return Pair(a, b, float(rand.mean()), float((rand > 1 - 1e-9).mean()), *changes)


def agreement_table(found: Agreement) -> tuple[Table, Table]:
    """A table of the Bs and a table of their pairs."""
    alone = Table(
        "B", "smECE", "excess", "accuracy", "confidence", "unparsed", "classes per question", box=box.SIMPLE_HEAD
    )
    for name, c in found.calibration.items():
        figures = (f"{c.smece:.3f} [{c.smece_low:.3f}, {c.smece_high:.3f}]", f"{c.excess:+.3f}", f"{c.accuracy:.3f}")
        alone.add_row(name, *figures, f"{c.confidence:.3f}", f"{c.unparsed_share:.1%}", f"{found.classes[name]:.1f}")
    pairs = Table("A", "B", "adjusted Rand", "same classes", "Δ smECE", "Δ accuracy", box=box.SIMPLE_HEAD)
    for p in found.pairs:
        pairs.add_row(p.a, p.b, f"{p.rand:.3f}", f"{p.same:.1%}", f"{p.smece_change:+.3f}", f"{p.accuracy_change:+.3f}")
    return alone, pairs
