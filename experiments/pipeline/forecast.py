"""How long it will take here to sample what is left of each cell of a study, from a measured first minute.

The time of a cell is taken to be proportional to the tokens that a dry run counts for it, to the share of its questions
that are left, and to the size of the model's weights. What analysis takes afterwards is not foreseen.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.config.study import Cell, Study
from experiments.pipeline.dry_run import Planned, dry_run
from experiments.pipeline.progress import Reporter
from semcal.errors import UserError
from semcal.runs.run import Run

MEASURED_S, SETTLED_S = 60.0, 10.0
ENOUGH, PATIENCE_S = 5, 300.0  # questions to tell a rate from, and how long they are waited for


@dataclass(frozen=True)
class Foreseen:
    """One cell, or several that share their samples.

    Attributes:
        seconds: Of sampling that are left.
        measured: Whether its own model was measured; otherwise another one, scaled by the size of the weights.
    """

    label: str
    seconds: float
    measured: bool


def work(planned: Planned) -> float:
    """Tokens read and generated times bytes of weights; 0 for a model that is not on this machine."""
    tokens = planned.prefill_tokens + planned.decode_tokens(planned.read.answer_tokens)
    return float(tokens) * (planned.memory["weights"] if planned.memory else 0)


def left(planned: Planned) -> float:
    """The share of its questions whose samples are not on disk; cells that share them differ in how many they hold."""
    return 1 - max(Run(Path(cell.folder)).questions_saved() for cell in planned.cells) / planned.read.n


def foresee(planned: Sequence[Planned], cell: Cell, seconds: float, share: float) -> list[Foreseen]:
    """The time that is left of every cell that is not sampled, from that of a part of one.

    Args:
        planned: Every cell, as a dry run counts it.
        cell: The one that was measured.
        seconds: How long it was sampled.
        share: Of its questions that were answered in that time, above 0.
    """
    own = next(p for p in planned if cell.folder in [c.folder for c in p.cells])
    if not (whole := work(own)):
        return []
    rate = seconds / share / whole
    foreseen = [(p, rate * work(p) * left(p)) for p in planned]
    return [Foreseen(_label(p.cell), time, p.cell.model.name == cell.model.name) for p, time in foreseen if time > 0]


class Forecast(Reporter):
    """Passes everything on, and tells how long what is left will take once a model has been sampled for a minute."""

    def __init__(
        self, study: Study, inner: Reporter, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study, self._inner, self._tell, self._clock = study, inner, tell, clock
        self._planned: list[Planned] | None = None
        self._seen: set[str] = set()  # models that were measured
        self._cell: Cell | None = None
        self._began = self._questions = self._answered = 0.0
        self._best = (math.inf, 0.0)  # seconds and answered questions at the tick with the most questions a second

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._inner.sampling(cell, questions, done)
        self._cell, self._began, self._questions, self._answered = cell, self._clock(), questions, 0.0
        self._best = (math.inf, 0.0)

    def answered(self, questions: int) -> None:
        self._inner.answered(questions)
        self._answered += questions
        cell, seconds = self._cell, self._clock() - self._began
        if cell is None or cell.model.name in self._seen or not self._answered:
            return
        # Questions in flight count for nothing until they are answered, many at once: the best tick has the fewest.
        if seconds >= SETTLED_S and self._answered / seconds > self._best[1] / self._best[0]:
            self._best = (seconds, self._answered)
        if seconds < MEASURED_S or (self._answered < ENOUGH and seconds < PATIENCE_S):
            return
        self._seen.add(cell.model.name)
        if self._planned is None:
            try:
                self._planned = dry_run(self._study)
            except UserError:  # a forecast is no reason to stop
                self._planned = []
        if self._planned:
            for line in lines(foresee(self._planned, cell, self._best[0], self._best[1] / self._questions)):
                self._tell(line)

    def stage(self, cell: Cell, what: str) -> None:
        self._inner.stage(cell, what)

    def finished(self, cell: Cell) -> None:
        self._inner.finished(cell)


def lines(foreseen: Sequence[Foreseen]) -> list[str]:
    """The forecast in words; a figure of a model that was not measured itself has ~ in front."""
    if len(foreseen) < 2:
        return []
    total = sum(f.seconds for f in foreseen)
    rows = [f"  {f.label}: {'' if f.measured else '~'}{duration(f.seconds)}" for f in foreseen]
    return [f"About {duration(total)} of sampling are left in all, by the first minute of one cell:", *rows]


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _label(cell: Cell) -> str:
    return f"{cell.model.name} · {cell.dataset.name} · {cell.style}"
