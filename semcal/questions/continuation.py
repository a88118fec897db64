"""Continuation tasks: a text file is split into documents, and each document into a prompt and what truly follows.

The task is the training distribution itself: a base model continues the text, the gold answer is what the author wrote,
and the semantic class is, for instance, the k-th word.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.question import Question
from semcal.questions.rows import make_question, read_text

_WORD = re.compile(r"\S+")
_CLAUSE_END = re.compile(r"[.,;:!?]")


def read_continuations(path: Path, *, split: str, prompt_words: Sequence[int], answer_words: int) -> list[Question]:
    """For each document and each number in `prompt_words`, a prompt from its beginning and the words that follow.

    A prompt ends with the first punctuation mark in or after its `prompt_words`-th word, so that the place of the cut
    follows from the prompt alone. A cut after a bare word would depend on the space that follows, which the model
    cannot know; it would look miscalibrated because it spends mass on word endings and commas.

    Documents that are too short are left out. Prompts of one document share a group, and so do documents that begin
    with the same prompt.

    Args:
        split: A regular expression; the text between two matches is a document.
        answer_words: Number of words of the true continuation to keep as the gold answer.

    Raises:
        UserError: no such file, an invalid pattern, or no document is long enough.
    """
    try:
        pattern = re.compile(split, flags=re.MULTILINE)
        # re.split also returns what groups in the pattern matched: every (groups + 1)-th part is a document.
        documents = [d.strip() for d in pattern.split(read_text(path))[:: pattern.groups + 1]]
    except re.error as error:
        raise UserError(f"split: {split!r} is not a valid regular expression ({error})") from None
    questions = []
    for number, document in enumerate(documents):
        cuts = [_cut(document, n, answer_words) for n in sorted(set(prompt_words))]
        group = next((" ".join(cut[0].split()) for cut in cuts if cut), "")
        for n, cut in zip(sorted(set(prompt_words)), cuts, strict=True):
            if cut:
                where, name = f"{path}: document {number + 1}", f"{path.stem}-{number:06d}-{n}"
                questions.append(make_question(where, id=name, text=cut[0], answers=(cut[1],), group=group))
    if not questions:
        raise UserError(
            f"{path}: none of its {len(documents)} documents has a punctuation mark after {min(prompt_words)} words "
            f"and {answer_words} words after it; check split ({split!r}), prompt_words and answer_words"
        )
    return questions


def _cut(document: str, prompt_words: int, answer_words: int) -> tuple[str, str] | None:
    """(prompt, answer) of a document; None if it is too short."""
    words = list(_WORD.finditer(document))
    if len(words) < prompt_words:
        return None
    mark = _CLAUSE_END.search(document, words[prompt_words - 1].start())
    if mark is None:
        return None
    following = list(_WORD.finditer(document, mark.end()))[:answer_words]
    if len(following) < answer_words:
        return None
    return document[: mark.end()], document[mark.end() : following[-1].end()].strip()
