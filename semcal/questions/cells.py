"""Cells of a table as text: which are missing, how a number is written, and what no text may hold."""

import math
import re
import unicodedata
from decimal import Decimal
from numbers import Integral, Number, Real
from typing import Any

import numpy as np

INVISIBLE = "\u00ad\u200b\u200e\u200f\u2060\ufeff"  # soft hyphen, zero width, direction marks, byte order mark
# JSON reads \frac as a form feed and "rac", \boxed as a backspace and "oxed".
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_EXACT = 2**53  # whole numbers up to here are floats without loss


def missing(value: Any) -> bool:
    """Whether a cell has no value: None, NaN, pandas' NA and NaT, or a text of which nothing can be seen."""
    if isinstance(value, str):
        if value and "!" <= value[0] <= "~":  # most are begun so
            return False
        return all(char.isspace() or char in INVISIBLE for char in value)
    if isinstance(value, Number) and not isinstance(value, complex):
        return math.isnan(value)  # pyright: ignore[reportArgumentType]
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def plain(value: Any) -> bool:
    """Whether a cell is a text that `as_text` leaves as it is, by a glance: most are, and the others may be."""
    return type(value) is str and value.isprintable() and "!" <= value[:1] <= "~"


def look(text: str) -> str:
    """What a label looks like: composed, single spaces, nothing invisible."""
    if text.isascii():
        return " ".join(text.split())
    return " ".join(unicodedata.normalize("NFC", "".join(c for c in text if c not in INVISIBLE)).split())


def as_text(value: Any) -> str:
    """A cell as text; a number in its shortest decimal form.

    >>> as_text(1931.0), as_text(0.1), as_text(-0.0), as_text(1e-7)
    ('1931', '0.1', '0', '0.0000001')

    Raises:
        ValueError: control characters or half a surrogate pair; a truth value, a date, an infinite number, a float
            beyond 2^53, which need not be the number that was meant; or anything else that is neither text nor number.
    """
    if isinstance(value, str):
        if not value.isprintable() and (odd := _CONTROL.search(value)):
            raise ValueError(f"holds the character U+{ord(odd[0]):04X}; remove it, and double the backslashes of JSON")
        return value
    if isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_):
        return _decimal(value)
    raise ValueError(f"must be text, got {type(value).__name__} ({value!s:.40}); write it as an answer would")


def _decimal(value: Real | Decimal) -> str:
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if not number.is_finite():
        raise ValueError(f"must be text, got the number {value}; write it as an answer would")
    if not isinstance(value, Decimal) and abs(number) > _EXACT:
        raise ValueError(f"holds the float {value}, whose last digits may be lost; write the number as text")
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if not number else digits
