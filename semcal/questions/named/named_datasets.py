"""The registry of named datasets: how a row becomes a question, where the Hub has it, and which semantics suits it.

To add a dataset, write its reader in a file of this folder and add an entry to `NAMED` (docs/extending.md). A reader
raises UserError, naming the row, where a column is missing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semcal.errors import UserError, nearest
from semcal.questions.named.data_folder import in_data_folder
from semcal.questions.named.gsm8k import gsm8k
from semcal.questions.named.lre import lre, lre_rows
from semcal.questions.named.math import math500, openmathinstruct2
from semcal.questions.named.nq_open import nq_open
from semcal.questions.named.popqa import popqa
from semcal.questions.named.simpleqa import simpleqa
from semcal.questions.named.sums import sums, sums_rows
from semcal.questions.named.triviaqa import triviaqa
from semcal.questions.named.truthfulqa import truthfulqa, truthfulqa_mc
from semcal.questions.question import Question
from semcal.questions.rows import Row, hub_rows, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A named dataset.

    Attributes:
        question: Turns a row, of the original file or of the Hub, into a Question.
        hub: Repository id, configuration (None if there is only one) and the split to evaluate; None if the Hub does
            not have it.
        semantics: Kind of the collapsing function that suits its answers; None if that one needs settings.
        unsuited: Kind of a collapsing function that is refused -> the reason, and what to use instead.
        in_distribution: Whether its answers are those that texts usually give; if common answers are wrong on purpose,
            the theory predicts that a base model is not calibrated.
        file: Where $SEMCAL_DATA holds the original file.
        rows: Makes the rows from (path, split), for a dataset that has no table.
    """

    question: Callable[[Row], Question]
    hub: tuple[str, str | None, str] | None
    semantics: str | None
    unsuited: Mapping[str, str] = field(default_factory=dict)
    in_distribution: bool = True
    file: str = ""
    rows: Callable[[Path | None, str | None], Iterable[Row]] | None = None


_SENTENCES = (
    "its answers are whole sentences, which two people never word alike; name entailment or judge, "
    "e.g. semantics: [{kind: entailment, path: cross-encoder/nli-deberta-v3-base}]"
)

NAMED: dict[str, Named] = {
    "gsm8k": Named(gsm8k, ("openai/gsm8k", "main", "test"), "numeric", file="gsm8k/test.jsonl"),
    "math500": Named(math500, ("HuggingFaceH4/MATH-500", None, "test"), "numeric", file="math500/test.jsonl"),
    "openmathinstruct2": Named(openmathinstruct2, ("nvidia/OpenMathInstruct-2", None, "train_1M"), "numeric"),
    "triviaqa": Named(
        triviaqa, ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"), "exact", file="triviaqa/TriviaQA.csv"
    ),
    "simpleqa": Named(simpleqa, ("basicv8vc/SimpleQA", None, "test"), "exact", file="simpleqa/simple_qa_test_set.csv"),
    "simpleqa-verified": Named(
        simpleqa, ("google/simpleqa-verified", None, "eval"), "exact", file="simpleqa/simpleqa_verified.csv"
    ),
    "truthfulqa": Named(
        truthfulqa,
        ("truthfulqa/truthful_qa", "generation", "validation"),
        None,
        unsuited={"exact": _SENTENCES},
        in_distribution=False,
        file="truthfulqa/TruthfulQA.csv",
    ),
    "truthfulqa-mc": Named(
        truthfulqa_mc,
        ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
        "choice",
        in_distribution=False,
        file="truthfulqa/mc_task.json",
    ),
    "nq-open": Named(
        nq_open, ("google-research-datasets/nq_open", None, "validation"), "exact", file="nq_open/NQ-open.dev.jsonl"
    ),
    "popqa": Named(popqa, ("akariasai/PopQA", None, "test"), "exact", file="popqa/popqa_1000.jsonl"),
    "lre": Named(lre, None, "mention", rows=lre_rows),
    "sums": Named(sums, None, "numeric", rows=sums_rows),
}


def why_not(kind: str, semantics: str) -> str | None:
    """Why a named dataset refuses a kind of collapsing function, in words; None if it does not."""
    reason = NAMED[kind].unsuited.get(semantics) if kind in NAMED else None
    return reason and f"{kind} is not read by {semantics}, since {reason}"


def read_named(
    kind: str, path: Path | None, *, split: str | None = None, revision: str | None = None
) -> list[Question]:
    """The questions of a named dataset, in the order of its rows.

    Rows with the same id and text are one question: the first is kept, and the number left out is logged.

    Args:
        kind: A key of `NAMED`.
        path: The dataset's original file; None to read that of $SEMCAL_DATA or, where it is not there or a split or
            revision is given, the Hub's copy.
        split: A split on the Hub, as `datasets` reads it ("train[:1000]"); the usual one to evaluate by default. Of
            lre, its relation; of sums, their size.
        revision: A branch, tag or commit on the Hub.

    Raises:
        UserError: an unknown dataset, a file that is missing or not in its format, or the Hub cannot be reached.
    """
    if kind not in NAMED:
        raise UserError(f"unknown dataset {kind!r}{nearest(kind, NAMED)}; expected one of {', '.join(NAMED)}")
    if path is not None and (split or revision):
        raise UserError(
            f"{kind}: path {path} is a file, and split and revision choose a version on the Hub; give one or the other"
        )
    rows = _rows(kind, path, split, revision)
    kept: dict[tuple[str, str], Question] = {}
    repeats = 0
    for question in map(NAMED[kind].question, rows):
        first = kept.setdefault((question.id, " ".join(question.text.split())), question)
        repeats += first is not question
    if repeats:
        logger.warning("%s: left out %d rows that repeat a question, kept %d", kind, repeats, len(kept))
    return list(kept.values())


def _rows(kind: str, path: Path | None, split: str | None, revision: str | None) -> Iterable[Row]:
    named = NAMED[kind]
    if named.rows is not None:
        if revision is not None:
            raise UserError(f"{kind} is not read from the Hub and has no revision {revision!r}; leave revision out")
        return named.rows(path, split)
    if path is None and split is None and revision is None:
        path = in_data_folder(named.file)
    if path is not None:
        return read_rows(path)
    assert named.hub is not None  # every dataset without rows of its own is on the Hub
    hub, config, usual = named.hub
    return hub_rows(hub, config, split=split or usual, revision=revision)
