"""From what a model wrote to the phrase that answers, by style; None where there is none."""

from __future__ import annotations

import re

from semcal.questions.question import CONTINUATION

_ABBREVIATED = "Dr Prof Mr Mrs Ms St Sts Mt Ft Jr Sr Lt Col Gen Capt Sgt Rev Rep Sen Gov No vs"
# A full stop ends a sentence unless an initial or a title stands before it: J. R. R. Tolkien, St. Louis.
_TITLES = "".join(rf"(?<!\b{title})" for title in _ABBREVIATED.split())
_ANSWER_IS = re.compile(rf"\b[Aa]nswer is:?\s+(.+?)(?:\n|$|(?<!\b[A-Z]){_TITLES}[.!?]\s)")
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
    # The last one: what stands after an earlier one may be taken back.
    found = [m.end() for m in re.finditer(r"\b[Aa]nswer is\b", text)]
    match = _ANSWER_IS.search(text, found[-1] - len("answer is")) if found else None
    phrase = match.group(1).strip().rstrip(".!?") if match else ""
    return phrase or None
