"""From what a model wrote to the phrase that answers the question, by style."""

import re
from collections.abc import Collection
from functools import lru_cache

from semcal.questions.question import CONTINUATION
from semcal.questions.wording import mention

_ABBREVIATED = "Dr Prof Mr Mrs Ms St Sts Mt Ft Jr Sr Lt Col Gen Capt Sgt Rev Rep Sen Gov No vs"
# A full stop ends a sentence unless it follows an initial or a title: J. R. R. Tolkien, St. Louis.
_TITLES = "".join(rf"(?<!\b{title})" for title in _ABBREVIATED.split())
_ANSWER_IS = re.compile(rf"\b[Aa]nswer is:?\s+(.+?)(?:\n|$|(?<!\b[A-Z]){_TITLES}[.!?]\s)")
# GSM8K writes ####, chat models **Answer:**.
_MARKED = re.compile(r"^\W*?(?:####|(?:final )?answer\**:\**|A:)[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|was|are|were)\b", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def extract(text: str, style: str) -> str | None:
    """The answering phrase of a text in this style.

    concise: the first line. sentence: what follows "the answer is", else what follows the last is/was/are/were, else
    the whole sentence. cot: the last of what follows "the answer is", of a line marked "####" or "Answer:", and of the
    content of \\boxed{}; without any of these there is no answer. continuation: the text itself.
    """
    found = locate(text, style)
    return found[1] if found else None


def locate(text: str, style: str) -> tuple[int, str] | None:
    """Where the answering phrase of a text begins, in characters, and the phrase as `extract` returns it."""
    if style == CONTINUATION:
        return 0, text
    body = text.strip()
    found = _final_answer(body) if style == "cot" else _in_line(body.split("\n", 1)[0].rstrip(), style)
    return (text.index(body) + found[0], found[1]) if found else None


def locate_form(text: str, style: str, forms: Collection[str]) -> tuple[int, str] | None:
    """As `locate`, if all answers are known forms: the last form that the phrase, or else the sentence, mentions.

    "You get off at Pinemere." has no phrase that can be found without knowing the towns. Of several forms that begin at
    the same place the longest counts; case is ignored. If no form is mentioned, the phrase is returned unchanged.
    """
    found = locate(text, style)
    if found is None or not forms:
        return found
    start, phrase = found
    pattern = _any_of(tuple(forms))
    mentions = [(start + m.start(), m[0]) for m in pattern.finditer(phrase)]
    if not mentions and style == "sentence":
        mentions = [(m.start(), m[0]) for m in pattern.finditer(text)]
    return mentions[-1] if mentions else found


@lru_cache(maxsize=8)
def _any_of(forms: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(mention, longest_first)), re.IGNORECASE)


def _in_line(line: str, style: str) -> tuple[int, str] | None:
    if style == "sentence" and line:
        if named := _last_answer(line):
            return named[1:]
        line = line.rstrip(".!? ")
        start = max((m.end() for m in _COPULA.finditer(line)), default=0)
        if phrase := line[start:].strip():
            return line.index(phrase, start), phrase
    return (0, line) if line else None


def unboxed(text: str) -> str | None:
    """The content of the last \\boxed{} of a text; None if there is none, or it is not closed."""
    found = _last_box(text)
    return found[2] if found else None


def _final_answer(text: str) -> tuple[int, str] | None:
    """The last answer that is marked as one; it may correct earlier ones."""
    marked = [(m.start(), m.start(1), m[1].strip()) for m in _MARKED.finditer(text)]
    found = [f for f in (_last_answer(text), _last_box(text), *marked[-1:]) if f]
    if not found:
        return None
    _, start, phrase = max(found)
    box = _last_box(phrase)
    return (start + box[1], box[2]) if box else (start, phrase)


# Each of these finds (where the mark begins, where the phrase begins, the phrase).


def _last_answer(text: str) -> tuple[int, int, str] | None:
    found = [m.end() for m in re.finditer(r"\b[Aa]nswer is\b", text)]
    match = _ANSWER_IS.search(text, found[-1] - len("answer is")) if found else None
    phrase = match[1].strip().rstrip(".!?") if match else ""
    return (match.start(), match.start(1), phrase) if match and phrase else None


def _last_box(text: str) -> tuple[int, int, str] | None:
    for box in reversed(list(_BOX.finditer(text))[-5:]):  # the last few, in case a text repeats itself
        depth = 1
        for at in range(box.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                inside = text[box.end() : at].strip()
                return (box.start(), text.index(inside, box.end()), inside) if inside else None
    return None
