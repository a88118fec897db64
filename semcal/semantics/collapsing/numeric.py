"""Numeric and LaTeX answers: two mean the same if and only if they have the same value, however it is written.

Plain numbers are parsed here, all other mathematics by math-verify. Its equality is not transitive (50 % equals both 50
and 0.5), so here every number has one value: a percent sign is a unit and is dropped like any other. Expressions are
equal if they agree at two fixed points of their variables. Sets, tuples, intervals and relations, which have no value,
are compared by math-verify, pair by pair.
"""

from __future__ import annotations

import math
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from semcal.questions.question import BlindQuestion
from semcal.questions.wording import normalise
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Partition
from semcal.semantics.extract import extract, unboxed

DECIMALS = 6  # numbers that agree to this many decimals are equal: 1/3 and 0.333333
_SECONDS = 5  # time limit per expression; sympy may never return
_LONGEST = 300  # characters; longer texts are not read as mathematics, and Python would not print so many digits
_NUMBER = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!|[ \u00a0\u202f])\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_WRITTEN = re.compile(
    rf"""^(?P<sign>[-+−]?)\s*(?:\\?[$€£]\s*)?(?P<minus>[-−]?)\s*
    (?: \\[dt]?frac\s*(?:\{{(?P<over>{_NUMBER})\}}|(?P<over1>\d))\s*(?:\{{(?P<under>{_NUMBER})\}}|(?P<under1>\d))
      | (?:(?P<whole>\d+)\s+)?(?P<up>{_NUMBER})\s*/\s*(?P<down>{_NUMBER})
      | (?P<plain>{_NUMBER}) )
    \s*(?P<unit>\\?%|(?:\\?[%$€£°]|\^\\circ|\^\{{\\circ\}}|\\(?:text|mbox|mathrm|textrm)\{{[^{{}}\d]*\}}
      (?:\^\{{?[23]\}}?)?|\\?\s|(?:[^\W\d_]{{2,}}+|[^\W\d_]\b(?=\s))(?:/[^\W\d_]++)?[.]?(?:\^\{{?[23]\}}?)?)*+)[.,]?$""",
    re.VERBOSE,
)
# Powers and factorials that sympy would compute to the last digit, which no alarm interrupts: 9^9^9, 5000!
_HUGE = re.compile(
    r"\^\s*(?:\{[^{}]*\^|\([^()]*\^|\w+\s*\^)|\^\s*[{(]?\s*-?\d{4}|\^\s*[{(](?:[^{}()]*\d){5}|\d{4}\)?\s*!|!\s*\)*!"
)
_CLAIM = re.compile(r"^(.+?),? (?:since|because|as|so|which)\b")  # 18, since 9*2 = 18
_ASSIGNED = re.compile(r"^\\?[A-Za-z]+(?:_\w|_\{\w+\})?\s*=\s*([^=]+)$")  # x = 5
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan"}
_WRAPPED = re.compile(
    r"^(?:\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|\\(?:text|mbox|mathrm|textrm|textbf)\{([^{}]*)\})$", re.DOTALL
)


@dataclass(frozen=True)
class Numeric:
    """The value of an answer to six decimals; functions by their values, sets and relations as math-verify compares.

    Units, currencies, thousands separators and percent signs are dropped. The class of an answer without mathematics is
    its normalised text.
    """

    @property
    def name(self) -> str:
        return "numeric/3"

    def partition(
        self,
        questions: Sequence[BlindQuestion],  # noqa: ARG002 - the contract of Collapse
        texts: Sequence[Sequence[str]],
        style: str,
    ) -> list[tuple[str, ...]]:
        """As `Collapse`."""
        found = []
        for own in texts:
            values = [_value(text, style) for text in own]
            named = _classes([v for v in values if v is not None])
            found.append(tuple(UNPARSED if v is None else named[v.key] for v in values))
        return found

    def match(
        self,
        questions: Sequence[BlindQuestion],  # noqa: ARG002
        partitions: Sequence[Partition],
        references: Sequence[Sequence[str]],
        style: str,
    ) -> list[tuple[str, ...]]:
        """As `Collapse`. A reference that math-verify calls equal to several classes is in the alphabetically first."""
        found = []
        for made, own in zip(partitions, references, strict=True):
            values = [(_value(text, style), label) for text, label in zip(made.texts, made.classes, strict=True)]
            known = {value.key: (value, label) for value, label in values if value is not None}
            found.append(tuple(_class_of(read(answer), known) for answer in own))
        return found


def _value(text: str, style: str) -> Value | None:
    phrase = extract(text, style)
    return None if phrase is None else read(phrase)


def _class_of(reference: Value, known: Mapping[str, tuple[Value, str]]) -> str:
    """The class of the known values that a reference equals; a class of its own if there is none."""
    if reference.key in known:
        return known[reference.key][1]
    equal = [label for value, label in known.values() if value.parsed and reference.parsed and _equal(value, reference)]
    return min(equal, default=reference.key)


@dataclass(frozen=True)
class Value:
    """What an answer means.

    Attributes:
        key: Its class, unless another answer is equal.
        parsed: The expression and its text, if it has no value to compare.
    """

    key: str
    parsed: tuple[Any, ...] = ()

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=2**16)
def read(phrase: str) -> Value:
    """The value of a phrase; its normalised text if it contains no mathematics."""
    if len(phrase) > _LONGEST:
        return _in_words(phrase)
    bare = _bare(phrase)
    number = _plain_number(bare)
    if number is None and (named_value := _ASSIGNED.match(bare)):
        number = _plain_number(_bare(named_value[1]))
    if number is None and (claim := _CLAIM.match(bare)):
        number = _plain_number(claim[1])
    if number is None and _is_prose(bare):
        named = {_fraction(n) for n in re.findall(_NUMBER, bare)}
        number = named.pop() if len(named) == 1 else None  # "she makes $18 a day"; of two numbers, neither
        if number is None:
            return _in_words(phrase)
    if number is not None:
        return Value(_rounded(number))
    return _expression(bare) or _in_words(phrase)


def _in_words(phrase: str) -> Value:
    bare = _bare(phrase)
    words = normalise(bare)
    # Normalising removes the marks of 2^{10000}, which would leave another number.
    return Value(words if re.search(r"[^\W\d]", words) else bare or phrase)


def _bare(phrase: str) -> str:
    """A phrase without a box, the marks around a formula, and a final full stop."""
    text = phrase.strip()
    text = unboxed(text) or text
    while True:
        text = text.strip().rstrip(".").strip().strip("*")
        match = _WRAPPED.match(text)
        if not match:
            return text
        text = next(group for group in match.groups() if group is not None)


def _plain_number(text: str) -> Fraction | None:
    match = _WRITTEN.match(text)
    if not match:
        return None
    over, under = match["over"] or match["over1"] or match["up"], match["under"] or match["under1"] or match["down"]
    if over is None:
        value = _fraction(match["plain"])
    elif not _fraction(under):
        return None
    else:
        value = _fraction(match["whole"] or "0") + _fraction(over) / _fraction(under)
    return -value if "-" in (match["sign"] + match["minus"]).replace("−", "-") else value


def _is_prose(text: str) -> bool:
    """Whether a text is words, whose letters math-verify would take for variables."""
    formula = re.sub(r"\\(?:text|mbox|mathrm|textrm|textbf|begin|end|operatorname)\{[^{}]*\}", "", text)
    return any(word not in _FUNCTIONS for word in re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", formula))


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.]", "", digits))


def _rounded(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    if abs(value) < Fraction(1, 1000):  # six digits of small numbers, too
        return f"{float(value):.{DECIMALS - 1}e}"
    near = round(value, DECIMALS)
    return str(near.numerator) if near.denominator == 1 else f"{float(near):.{DECIMALS}f}".rstrip("0")


def _expression(text: str) -> Value | None:
    import sympy
    from math_verify import parse
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    if _HUGE.search(text.replace("**", "^")):
        return None
    found = parse(f"${text}$", parsing_timeout=_limit())  # pyright: ignore[reportArgumentType]
    if not found:
        return None
    if isinstance(found[0], sympy.Expr):
        try:
            key = timeout(_limit())(_evaluated)(found[0])
        except TimeoutException:
            return None
        if key is not None:
            return Value(key)
    return Value(text, tuple(found))


def _evaluated(expression: Any) -> str | None:
    """The value of a number, or those of a function at two points; None if it has none."""
    import sympy

    try:
        exact = expression.doit()
        if exact.is_Rational:
            if max(abs(exact.p), exact.q) > 10**_LONGEST:
                return None
            return _rounded(Fraction(int(exact.p), int(exact.q)))
        letters = sorted(exact.free_symbols, key=str)
        # A variable's value depends only on its name, so that equal functions agree and others practically never do.
        points = [{x: sympy.Rational(zlib.crc32(f"{x}{n}".encode()), 2**31) + 1 for x in letters} for n in (0, 1)]
        values = [complex(exact.subs(point).evalf(20)) for point in points[: 2 if letters else 1]]
    except (AttributeError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None
    if not all(math.isfinite(v.real) and math.isfinite(v.imag) for v in values):
        return None
    if letters:
        return f"f({', '.join(map(str, letters))}) = " + ", ".join(f"{v:.{2 * DECIMALS}g}" for v in values)
    value = values[0]
    real = _rounded(Fraction(value.real))
    return real if abs(value.imag) < 10**-DECIMALS else f"{real} + {_rounded(Fraction(value.imag))}i"


def _classes(values: Sequence[Value]) -> dict[str, str]:
    """Key -> name of its class. Keys that math-verify calls equal, directly or through others, share the least one."""
    distinct = {v.key: v for v in values}
    classes = {key: key for key in distinct}
    expressions = sorted(key for key, v in distinct.items() if v.parsed)
    for at, key in enumerate(expressions):
        for earlier in expressions[:at]:
            if classes[key] != classes[earlier] and _equal(distinct[earlier], distinct[key]):
                merged, kept = sorted((classes[key], classes[earlier]), reverse=True)
                classes = {k: kept if c == merged else c for k, c in classes.items()}
    return classes


def _equal(a: Value, b: Value) -> bool:
    from math_verify import verify

    return any(
        verify(list(x), list(y), float_rounding=DECIMALS, timeout_seconds=_limit())
        for x, y in ((a.parsed, b.parsed), (b.parsed, a.parsed))
    )


def _limit() -> int | None:
    """The time limit; None outside the main thread, since math-verify uses a signal that only that thread receives."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
