"""Questions that a model was trained on, and which others may still be asked: those of other groups."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from semcal.questions.question import Question
from semcal.questions.wording import bare_text

TRAINED = "trained.jsonl"  # next to the weights of a model that `semcal train --from` or `semcal tilt` made


def touched(questions: Sequence[Question], trained: Iterable[Question]) -> list[bool]:
    """[question] whether one with its text or its group label is among those trained on.

    The label of a question that is a group of its own is its id, which says nothing in another dataset.
    """
    if not (trained := list(trained)):
        return [False] * len(questions)
    texts = {bare_text(q.text) for q in trained}
    labels = {q.group for q in trained if q.group != q.id}
    return [bare_text(q.text) in texts or q.group in labels for q in questions]


def held_out(grouped: Sequence[Question], is_touched: Sequence[bool]) -> list[Question]:
    """The questions whose whole group is untouched."""
    seen = {q.group for q, known in zip(grouped, is_touched, strict=True) if known}
    return [q for q in grouped if q.group not in seen]


def write_trained(questions: Iterable[Question], folder: Path) -> None:
    """Write questions next to a model as a table that `semcal.questions.load_dataset.read_table` reads."""
    kept = {(q.id, bare_text(q.text)): q for q in questions}.values()
    rows = [{"id": q.id, "question": q.text, "answers": list(q.answers), "group": q.group} for q in kept]
    partial = folder / f"{TRAINED}.partial"
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, folder / TRAINED)
