"""How answers are worded: when two wordings are one, where a text mentions one, and which of several a reader writes.

Everything that compares texts by their words goes through here: exact match and the clustering Bs, gold and aliases,
multiple choice, and which questions repeat each other.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from semcal.questions.cells import INVISIBLE

# One look, several characters: invisible ones go, and each hyphen, en dash and minus sign is the ASCII one.
_ALIKE = dict.fromkeys(map(ord, INVISIBLE)) | dict.fromkeys(map(ord, "‐‑‒–−﹣－"), "-")
_MARK = f"[{re.escape(string.punctuation + '‘’“”´')}]"
# 1,500 and 1'500 as 1500, and the Indian 1,50,000.
_THOUSANDS = re.compile(
    r"(?<![\d.,'’])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:['’]\d{3})+)(?![,'’]?\d)"
)
_LIST = re.compile(r"(?<=\d)[,;](?=\d)")  # 1,2 is 1, 2
_POINT = re.compile(r"(?<![\w.])\.(?=\d)")  # .5 is 0.5
_SPACED = re.compile(r"(?<=\d)\s+([-+/:*^=])\s+(?=\d)")  # 1914 - 1918 is 1914-1918
# The marks that are part of what a word or a number says.
_TELLING = "|".join(
    (
        rf"(?<=\d){_MARK}+(?=\d)",  # 1.5, 10:30, 1/2, 1914-1918
        r"(?<![^\W_])(?<![)\]}-])-(?=[$]?\d)",  # -5, -$5
        r"(?<=[\w+])\+(?![^\W\d_])|(?<=\w)#(?!#)",  # C++, O+, C#
        rf"(?<![^\W_])[^\W\d_]{{1,2}}\d?-(?={_MARK}*(?:\s|$))",  # O-, Cl-
    )
)
_SILENT = re.compile(rf"(?P<kept>{_TELLING})|{_MARK}")
_GAP = re.compile(rf"(?P<kept>{_TELLING})|\W")
_WORD = re.compile(r"\w+")
# Without one of these two, no mark of _TELLING is in a text, nor anything that _joined changes. A search is fast where
# a pattern has one beginning.
_OPERATOR, _BEFORE_DIGIT = re.compile(r"[-+#/:*^=]"), re.compile(rf"{_MARK}\d")
_ARTICLE = re.compile(r"(?<![\w+#-])(?:a|an|the)(?![\w+#-])")


@lru_cache(maxsize=2**16)  # the same few answers recur
def normalise(text: str) -> str:
    """Lower case, NFC, no punctuation, no articles, single spaces, as SQuAD does; but other words stay other words.

    Marks stay where they tell answers apart: between digits (1.5, 10:30, 1/2), a minus before a number, + and # after a
    word (C++, C#), a minus that ends a symbol of one or two letters (O-). Thousands separators go (1,500 is 1500). A
    hyphen between words goes, as before. An answer of which nothing would be left ("The The", "A", "?") keeps its
    lower-case form.

    >>> normalise("The Spider-Man!"), normalise("1,500.50"), normalise("−5"), normalise("C++")
    ('spiderman', '1500.50', '-5', 'c++')
    """
    plain = _plain(text)
    bare = " ".join(_ARTICLE.sub(" ", _SILENT.sub(_kept_or(""), plain)).split())
    return bare or plain


def bare_text(text: str) -> str:
    """The words and numbers of a text, without case and other marks; the text itself if it has none."""
    plain = _lowered(text)
    words = _GAP.sub(_kept_or(" "), _joined(plain)).split() if _has_telling_marks(plain) else _WORD.findall(plain)
    bare = " ".join(words)
    return (bare if bare.isascii() else " ".join(bare.casefold().split())) or text


def mention(form: str) -> str:
    """A regular expression for a form where it stands on its own: no part of a longer word or number.

    5 is not mentioned in -5, 1.5 or 10:5, nor C in C++.
    """
    number_begun = rf"(?:(?<=\d{_MARK})|(?<=^-)|(?<=\s-))\d"
    return rf"(?<!\w)(?!{number_begun}){re.escape(form)}(?![\w+#])(?!(?<=\d){_MARK}\d)"


def _plain(text: str) -> str:
    """In lower case and NFC, with one character for each look and one form for each number."""
    lowered = _lowered(text)
    return _joined(lowered) if _has_telling_marks(lowered) else lowered


def _lowered(text: str) -> str:
    lowered = text.lower()
    if not lowered.isascii():
        lowered = unicodedata.normalize("NFC", lowered).translate(_ALIKE)
    return " ".join(lowered.split())


def _has_telling_marks(lowered: str) -> bool:
    return _OPERATOR.search(lowered) is not None or _BEFORE_DIGIT.search(lowered) is not None


def _joined(lowered: str) -> str:
    """With one form for each number."""
    joined = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), lowered)
    return _SPACED.sub(r"\1", _POINT.sub("0.", _LIST.sub(" ", joined)))


def _kept_or(other: str) -> Callable[[re.Match[str]], str]:
    return lambda match: match["kept"] or other


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
    answers = [unicodedata.normalize("NFC", answer) for answer in answers]
    first = answers[0]
    if sum(map(str.isalpha, first)) <= 2 or not first.isupper():
        return first
    words = r"[^\w,]+".join(map(re.escape, re.findall(r"\w+", first)))
    found = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    votes = Counter(match[0] for alias in answers[1:] if (match := found.search(alias)))
    others = [form for form in votes if not form.isupper()]
    if not others:
        return first
    best = max(others, key=lambda form: (_capitals_begin_words(form), form[0].isupper(), votes[form], _capitals(form)))
    for_capitals = sum(n for form, n in votes.items() if form.isupper())
    against = sum(votes[form] for form in others)
    return best if against > for_capitals or (against == for_capitals and best in answers) else first


def _capitals_begin_words(form: str) -> bool:
    """Whether capitals only begin words: Delaware, not DelawarE."""
    return not re.search(r"[a-z][A-Z]", form)


def _capitals(form: str) -> int:
    return sum(map(str.isupper, form))
