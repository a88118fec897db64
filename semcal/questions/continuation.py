"""Continuation tasks: any text file, cut into documents and each document into a prompt and what truly follows.

Here the training distribution itself is the question: a base model is asked what comes next, the gold answer is what
the author wrote, and the semantic class is, for instance, the k-th word.
"""

from __future__ import annotations

import re
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.files import _read, make_question
from semcal.questions.question import Question

_WORD = re.compile(r"\S+")


def read_continuations(path: Path, *, split: str, prompt_words: int, answer_words: int) -> list[Question]:
    """One question a document: its first `prompt_words` words; the gold answer is the `answer_words` words after them.

    Prompts start where a document starts and end at a word border, without the space that follows, so that the
    continuation starts with it. Documents that are too short are left out. Documents that open with the same words
    share a group.

    Args:
        split: Regular expression; the text between two matches is a document.

    Raises:
        UserError: no such file, a pattern that does not compile, or no document long enough.
    """
    try:
        documents = [d.strip() for d in re.split(split, _read(path), flags=re.MULTILINE)]
    except re.error as error:
        raise UserError(f"split: {split!r} is no regular expression ({error})") from None
    questions = []
    for number, document in enumerate(documents):
        words = list(_WORD.finditer(document))
        if len(words) < prompt_words + answer_words:
            continue
        prompt = document[: words[prompt_words - 1].end()]
        answer = document[words[prompt_words].start() : words[prompt_words + answer_words - 1].end()]
        questions.append(
            make_question(
                f"{path}: document {number + 1}",
                id=f"{path.stem}-{number:06d}",
                text=prompt,
                answers=(answer,),
                group=" ".join(prompt.split()),
            )
        )
    if not questions:
        raise UserError(
            f"{path}: none of its {len(documents)} documents has {prompt_words + answer_words} words; "
            f"check split ({split!r}), prompt_words and answer_words"
        )
    return questions
