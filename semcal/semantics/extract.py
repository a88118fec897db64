"""From what a model wrote to the phrase that answers, by style; None where there is none."""

from __future__ import annotations

import re

from semcal.questions.question import CONTINUATION

_ANSWER_IS = re.compile(r"\banswer is:?\s+(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE | re.DOTALL)
_COPULA = re.compile(r"\b(?:is|was|are|were)\b", re.IGNORECASE)


def extract(text: str, style: str) -> str | None:
    """The answering phrase of a text in this style.

    concise: its first line. sentence: what follows "the answer is", else what follows the last is/was/are/were, else
    the whole sentence. cot: what follows the last "the answer is"; without one there is no answer. continuation: the
    text itself.
    """
    if style == CONTINUATION:
        return text
    body = text.strip()
    if style == "cot":
        return _last_answer(body)
    line = body.split("\n", 1)[0].strip()
    if style == "sentence" and line:
        named = _last_answer(line)
        if named:
            return named
        line = line.rstrip(".!? ")
        clauses = _COPULA.split(line)
        return clauses[-1].strip() or line or None
    return line or None


def _last_answer(text: str) -> str | None:
    found = _ANSWER_IS.findall(text)
    phrase = found[-1].strip().rstrip(".") if found else ""
    return phrase or None
