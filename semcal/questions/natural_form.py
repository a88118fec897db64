"""The form of an answer that a reader would write, out of its list of aliases."""

import re
from collections import Counter
from collections.abc import Sequence


def natural_form(answers: Sequence[str]) -> str:
    """The first answer; where it is in capitals, in the letter case that most of the others write it in.

    Alias lists hold THALIA as well as Thalia, and a base model imitates the capitals of an exemplar. Every alias that
    contains the words of the first one votes for the case in which it writes them ("Thalia (Greek mythology)"). Thus an
    abbreviation keeps its capitals, since most aliases write LSD and only one Lsd; one of two letters always does. On a
    tie the other case wins if it is an alias by itself. Quotation marks around the words go. Without another case among
    the aliases, the first answer is returned as it is: no case is invented.

    >>> natural_form(("THALIA", "Thalia (album)", "Thalia", "Θάλεια"))
    'Thalia'
    """
    first = answers[0]
    if sum(map(str.isalpha, first)) <= 2 or not first.isupper():
        return first
    words = r"[^\w,]+".join(map(re.escape, re.findall(r"\w+", first)))
    found = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    votes = Counter(match[0] for alias in answers[1:] if (match := found.search(alias)))
    others = [form for form in votes if not form.isupper()]
    if not others:
        return first
    best = max(others, key=lambda form: (_plain(form), form[0].isupper(), votes[form], _capitals(form)))
    for_capitals = sum(n for form, n in votes.items() if form.isupper())
    against = sum(votes[form] for form in others)
    return best if against > for_capitals or (against == for_capitals and best in answers) else first


def _plain(form: str) -> bool:
    """Whether capitals only begin words: Delaware, not DelawarE."""
    return not re.search(r"[a-z][A-Z]", form)


def _capitals(form: str) -> int:
    return sum(map(str.isupper, form))
