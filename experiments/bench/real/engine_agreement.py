"""How far apart two engines are that sampled the same questions with the same model:

    semcal run experiments/bench/real/both_engines.yaml
    python -m experiments.bench.real.engine_agreement runs/engines/sampler__* runs/engines/vllm__*

Compared are the questions that both runs hold. Each engine draws its own samples, so calibration need only agree
within its intervals; a probe of one run's samples from the other's activations shows what the activations alone change,
and the two halves of one run's samples how far apart two draws of one engine are. Ends with code 1 where something does
not agree.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from experiments.report.summary_table import interval, number, text_table
from experiments.sample.vllm_cell import COSINE, RELATIVE
from probes.activations.layers import Layers
from probes.evaluation.layerwise import CrossValidation, evaluate_all
from probes.targets.scalars import scalar_target
from semcal.calibration.estimators.finite_m import thin
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import Calibration, calibrate
from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable

FIGURES = ("accuracy", "confidence", "smece", "auroc")
TARGETS = ("b_confidence", "entropy")
CURVE = 0.02  # most that the share explained may differ at a layer


@dataclass(frozen=True)
class Compared:
    """A line of the table: a figure of both runs, how far apart they are, and whether that is near enough; None: no
    limit was set."""

    what: str
    one: str
    other: str
    apart: str
    agrees: bool | None


class Shared:
    """What a run holds of some questions, in their order."""

    def __init__(self, run: Run, questions: Sequence[str]) -> None:
        self.run, self.questions = run, questions
        table = run.class_table()
        self.table: ClassTable = table.select(_rows(table.questions, questions))

    def layers(self, position: str) -> Layers:
        stored = self.run.activations(position)
        rows = _rows(stored.questions, self.questions)
        return Layers(stored.layers, lambda i: stored.layer(stored.layers[i])[rows], 4 * stored.width[0])

    def halves(self) -> tuple[ClassTable, ClassTable]:
        """Half of each question's samples, chosen at random, and the other half."""
        counts = self.table.sampled_counts
        m = int(counts.sum(axis=1).min())
        even = thin(counts, m - m % 2, rng=keyed_generator(0, "halves", "all"), repeats=1)[0]
        half = thin(even, m // 2, rng=keyed_generator(0, "halves", "one"), repeats=1)[0]
        return replace(self.table, counts=half, masses=None), replace(self.table, counts=even - half, masses=None)

    @staticmethod
    def curves(table: ClassTable, activations: Layers) -> np.ndarray:
        """[target, layer] the share explained of what was sampled, by a linear probe on held-out questions."""
        targets = [scalar_target(table, name, seed=0) for name in TARGETS]
        how, group = CrossValidation(permutations=0), table.groups.tolist()
        found = evaluate_all(activations, targets, group=group, how=how, resampling=Resampling())
        return np.array([e.frame["explained"] for e in found])


def compared(one: Run, other: Run) -> Iterator[Compared]:
    """All lines of the table.

    Raises:
        UserError: no question in common, or other prompts.
    """
    questions = _in_common(one, other)
    mine, theirs = Shared(one, questions), Shared(other, questions)
    yield from _calibration(mine.table, theirs.table)
    positions = [p for p in one.manifest()["positions"] if p in other.manifest()["positions"]]
    for position in positions:
        yield from _streams(position, mine.layers(position), theirs.layers(position))
    if LAST_PROMPT_TOKEN in positions:
        yield from _probes(mine, theirs)


def _in_common(one: Run, other: Run) -> list[str]:
    mine, theirs = (dict(run.questions()[["id", "prompt_hash"]].to_numpy().tolist()) for run in (one, other))
    questions = [q for q in mine if q in theirs]
    if not questions:
        raise UserError(f"{one.folder} and {other.folder} have no question in common; name two runs of one dataset")
    if wrong := [q for q in questions if mine[q] != theirs[q]]:
        raise UserError(
            f"question {wrong[0]!r} has another prompt in {other.folder}; name runs with the same prompting"
        )
    return questions


def _rows(held: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place = {question: row for row, question in enumerate(held)}
    return [place[question] for question in wanted]


def _calibration(mine: ClassTable, theirs: ClassTable) -> Iterator[Compared]:
    a, b = calibrate(mine), calibrate(theirs)
    for name in FIGURES:
        ours, others = _with_interval(a, name), _with_interval(b, name)
        apart = abs(ours[0] - others[0])
        if np.isnan(apart):  # as the AUROC is undefined where no answer is right
            within = np.isnan(ours[0]) == np.isnan(others[0])
        else:
            within = others[1] <= ours[0] <= others[2] and ours[1] <= others[0] <= ours[2]
        yield Compared(name, interval(*ours), interval(*others), number(apart), bool(within))


def _with_interval(found: Calibration, name: str) -> tuple[float, float, float]:
    return getattr(found, name), getattr(found, f"{name}_low"), getattr(found, f"{name}_high")


def _streams(position: str, mine: Layers, theirs: Layers) -> Iterator[Compared]:
    lengths, cosines = [], []
    for i in range(len(mine.names)):
        a, b = (layers.read(i).astype(np.float64) for layers in (mine, theirs))
        norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        lengths.append((np.linalg.norm(a - b, axis=1) / norms[0]).max())
        cosines.append(((a * b).sum(1) / (norms[0] * norms[1])).min())
    worst, least = int(np.argmax(lengths)), int(np.argmin(cosines))
    yield Compared(
        f"{position}: difference of the stream, of its length, at most", "", mine.names[worst],
        f"{lengths[worst]:.2g}", bool(lengths[worst] <= RELATIVE),
    )  # fmt: skip
    yield Compared(
        f"{position}: 1 minus the cosine, at most", "", mine.names[least],
        f"{1 - cosines[least]:.2g}", bool(cosines[least] >= COSINE),
    )  # fmt: skip


def _probes(mine: Shared, theirs: Shared) -> Iterator[Compared]:
    here, there = mine.layers(LAST_PROMPT_TOKEN), theirs.layers(LAST_PROMPT_TOKEN)
    own, others = Shared.curves(mine.table, here), Shared.curves(theirs.table, there)
    crossed = Shared.curves(mine.table, there)
    for what, curves in (("own samples", others), ("the first run's samples", crossed)):
        for target, a, b in zip(TARGETS, own, curves, strict=True):
            at = int(np.abs(a - b).argmax())
            apart = float(np.abs(a - b)[at])
            name = f"explained of {target}, {what}, where furthest apart ({here.names[at]})"
            yield Compared(name, f"{a[at]:.3f}", f"{b[at]:.3f}", f"{apart:.2g}", apart <= CURVE)
    ours = [Shared.curves(half, here) for half in mine.halves()]
    its = [Shared.curves(half, there) for half in theirs.halves()]
    between = np.mean([_furthest(a, b) for a in ours for b in its], axis=0)  # [target]
    for target, a, b, apart in zip(TARGETS, _furthest(*ours), _furthest(*its), between, strict=True):
        name = f"explained of {target}, halves of a run's samples, furthest apart; apart: halves of both, mean of four"
        yield Compared(name, f"{a:.2g}", f"{b:.2g}", f"{apart:.2g}", None)


def _furthest(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[target] the largest distance of two curves over layers."""
    return np.abs(one - other).max(axis=1)


def main(
    one: Annotated[Path, typer.Argument(help="The folder of a run.")],
    other: Annotated[Path, typer.Argument(help="That of another engine on the same questions.")],
) -> None:
    """Print how far two runs of one model are apart."""
    try:
        runs = Run.open(one), Run.open(other)
        rows = list(compared(*runs))
        n = len(_in_common(*runs))
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    cells = [[r.what, r.one, r.other, r.apart, {True: "yes", False: "no", None: ""}[r.agrees]] for r in rows]
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(text_table((f"{n} questions", one.name, other.name, "apart", "agrees"), cells))
    raise typer.Exit(1 if any(r.agrees is False for r in rows) else 0)


if __name__ == "__main__":
    typer.run(main)
