"""How often models are right, on questions that a study does not evaluate: `python -m experiments.sample.accuracy_scan
STUDY`.

For choosing the datasets of a study by accuracy alone, before it is run. Of each dataset the questions are taken that
follow those that the study evaluates, without any that share a group with these. Nothing of confidence is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.config.collapsing_functions import collapse_of, known_aliases
from experiments.config.study import Cell, DatasetConfig, PromptingConfig, Study, load_dataset, load_study
from experiments.sample.asked import ask_all, stop_strings
from experiments.sample.models import Models
from semcal.answers import sample
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.question import Dataset
from semcal.semantics.collapse_answers import collapse


@dataclass(frozen=True)
class Scanned:
    """One cell.

    Attributes:
        questions: Number asked.
        accuracy: Mean share of a question's samples that are correct.
        mode_accuracy: Share of questions whose most frequent answer is correct.
        unparsed, truncated: Shares of the samples.
    """

    cell: Cell
    questions: int
    accuracy: float
    mode_accuracy: float
    unparsed: float
    truncated: float


def unevaluated(config: DatasetConfig, prompting: PromptingConfig, n: int) -> Dataset:
    """Up to n questions of a dataset that a study with this configuration neither evaluates nor shows.

    Raises:
        UserError: it evaluates all of them.
    """
    whole = load_dataset(config.model_copy(update={"n": None}), prompting)
    evaluated = whole.questions[: config.n]
    groups = {q.group for q in evaluated}
    rest = tuple(q for q in whole.questions[len(evaluated) :] if q.group not in groups)
    if not rest:
        raise UserError(
            f"{config.name}: the study evaluates all {len(whole.questions)} questions, which leaves none to scan; "
            "lower its n"
        )
    return replace(whole, questions=rest[:n])


def scan(study: Study, *, n: int, m: int) -> Iterator[Scanned]:
    """Every cell of a study on n questions that it does not evaluate, m samples each."""
    models = Models()
    datasets = {d.name: unevaluated(d, study.prompting, n) for d in study.datasets}
    for cell in study.cells():
        model, dataset = models.of(cell.model), datasets[cell.dataset.name]
        if not isinstance(model, LanguageModel):
            raise UserError(f"{cell.model.name} is served; a scan needs a local model")
        settings = {"m": m, "temperature": cell.sampling.temperature, "stop": stop_strings(cell, model)}
        asked = ask_all(cell, dataset, model)
        prompts = [a.prompt for a in asked]
        answers = sample(model, prompts, max_new_tokens=cell.sampling.length(cell.style), seed=cell.seed, **settings)
        b = collapse_of(cell.semantics, known_aliases(dataset))
        table = collapse(replace(dataset, questions=tuple(a.question for a in asked)), answers, b, style=cell.style)
        assert table.counts is not None
        cut = sum(a.count or 0 for found in answers for a in found if a.finish == "length")
        yield Scanned(
            cell,
            len(table),
            float((table.counts * table.gold).sum() / table.counts.sum()),
            float(np.mean(table.by_count.correct)),
            table.unparsed_share,
            cut / int(table.counts.sum()),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.sample.accuracy_scan", description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `semcal run`")
    parser.add_argument("-n", type=int, default=40, help="questions per cell")
    parser.add_argument("-m", type=int, default=8, help="samples per question")
    options = parser.parse_args(arguments)
    try:
        for s in scan(load_study(options.study, options.set), n=options.n, m=options.m):
            sys.stdout.write(
                f"{s.cell.label}: right {s.accuracy:.1%} of the samples, {s.mode_accuracy:.1%} of the most frequent "
                f"answers; unparsed {s.unparsed:.1%}, cut {s.truncated:.1%}; n = {s.questions}, M = {options.m}\n"
            )
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
