"""Which questions a model is trained on: a dataset, split by group into those and the ones that evaluation asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.config.collapsing_functions import check_semantics, collapse_of, known_aliases
from experiments.config.study import (
    DatasetConfig,
    NamedConfig,
    PromptingConfig,
    TableConfig,
    default_semantics,
    load_dataset,
    parse,
)
from experiments.train.conversations import Turn
from semcal.errors import UserError, nearest
from semcal.questions.named.named_datasets import NAMED
from semcal.questions.prompts import Chat
from semcal.questions.question import Dataset, Question
from semcal.seeds import keyed_generator
from semcal.semantics.collapsing.collapse import Collapse, collapse_blind

_TABLES = ("jsonl", "csv", "parquet")


@dataclass(frozen=True)
class TrainingQuestions:
    """Attributes:
    config: The dataset, as a study would name it.
    dataset: All of its questions.
    trained: Those to train on; no other question shares a group with one.
    """

    config: DatasetConfig
    dataset: Dataset
    trained: tuple[Question, ...]

    @classmethod
    def read(cls, source: str, held_out: float) -> TrainingQuestions:
        """The questions of a dataset, except for a share of the groups that is held out.

        Whether a group is held out depends on its label and the share alone, not on a seed: stages of one lineage and
        trainings with other seeds hold out the same.

        Args:
            source: A named dataset, "NAME:FILE" for its original file, or a table of your own.

        Raises:
            UserError: no such dataset, a malformed file, no question on one of the two sides.
        """
        config = dataset_config(source)
        dataset = load_dataset(config, PromptingConfig(shots=0, exemplars=0))
        trained = tuple(q for q in dataset.questions if not _is_held_out(q.group, held_out))
        if not 0 < len(trained) < len(dataset.questions):
            side = "train on" if not trained else "evaluate"
            raise UserError(
                f"{source}: no question is left to {side}: {len(dataset.questions)} questions, held_out is {held_out}; "
                "change held_out or use more questions"
            )
        return cls(config, dataset, trained)

    @property
    def digest(self) -> str:
        """Of what is trained on: the same wherever the file lies."""
        told = json.dumps([[q.id, q.text, *q.answers] for q in self.trained], ensure_ascii=False)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def collapse(self, styles: Sequence[str]) -> Collapse:
        """The dataset's own B.

        Raises:
            UserError: it has none, or that cannot read the gold answers.
        """
        if isinstance(self.config, NamedConfig) and NAMED[self.config.kind].semantics is None:
            raise UserError(
                f"{self.config.kind} has no collapsing function of its own, so no answer is known to be correct; train "
                "--stage sft on it, or use another dataset"
            )
        semantics = default_semantics(self.config)
        for style in styles:
            check_semantics(semantics, self.dataset, style)
        return collapse_of(semantics, known_aliases(self.dataset))

    def turns(self, styles: Sequence[str], *, need_answer: bool) -> list[Turn]:
        """Every question to train on in every style, with its gold answer as an exemplar would write it.

        Args:
            need_answer: Leave out what no one knows how to write, such as a chain of thought that is not given.

        Raises:
            UserError: nothing is left in a style.
        """
        found: list[Turn] = []
        for style in styles:
            form = Chat(style)
            own = [Turn(q, style, form.gold(q)) for q in self.trained]
            own = [turn for turn in own if turn.answer or not need_answer]
            if not own:
                raise UserError(
                    f"{self.dataset.name}: no question has a worked answer in style {style}; leave it out of styles, "
                    "e.g. --set styles=[concise,sentence]"
                )
            found += own
        return found


def shuffled(turns: Sequence[Turn], seed: int, stage: str) -> Iterator[Turn]:
    """The turns without end, each once per round, every round in another order."""
    round_number = 0
    while True:
        order: np.ndarray = keyed_generator(seed, "train", stage, str(round_number)).permutation(len(turns))
        yield from (turns[i] for i in order)
        round_number += 1


def right(b: Collapse, turn: Turn, answers: Sequence[str]) -> list[bool]:
    """[answer] whether it is correct; B reads the answers without the gold ones."""
    (found,) = collapse_blind(b, [turn.question], [answers], turn.style)
    return [label in found.gold for label in found.classes]


def dataset_config(source: str) -> DatasetConfig:
    """A dataset on the command line, as a study would name it.

    Raises:
        UserError: no such dataset.
    """
    name, _, file = source.partition(":")
    if name in NAMED:
        return parse(NamedConfig, {"kind": name, "path": file or None}, f"--dataset {source}")
    kind = Path(source).suffix.lower().removeprefix(".")
    if kind not in _TABLES:
        raise UserError(
            f"no dataset {source!r}{nearest(name, NAMED)}; expected a .jsonl, .csv or .parquet file, NAME or NAME:FILE "
            f"with a NAME out of {', '.join(NAMED)}"
        )
    return parse(TableConfig, {"kind": kind, "path": source}, f"--dataset {source}")


def _is_held_out(group: str, share: float) -> bool:
    return bool(keyed_generator(0, "held out", group).random() < share)
