"""Colours, dashes and markers, and in which order the names of a figure come: the same in every figure.

Okabe & Ito's colours, distinguishable with every kind of colour vision; dashes and markers repeat the distinction in
grey.
"""

from collections.abc import Sequence

BLUE, GREY, LIGHT_GREY = "#0072B2", "#6E6E6E", "#D9D9D9"  # the blue is darker than the greys
INK, MUTED, FAINT = "#222222", "#6B6B6B", "#E6E6E6"

Line = tuple[str, object, str]  # colour, dashes, marker
LINES: tuple[Line, ...] = (
    (BLUE, "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1)), "P"),
)
_MORE_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours, so that neither repeats with the other
STYLES = ("concise", "sentence", "cot", "continuation")
TOLERANCE = {"color": "#D55E00", "lw": 1.0, "ls": (0, (4, 2)), "zorder": 1.5}  # the smallest error that counts


def styles_in_order(names: Sequence[str]) -> list[str]:
    """Each style once: the known ones from the shortest answer to the longest, then others as they come."""
    once = list(dict.fromkeys(names))
    return sorted(once, key=lambda name: STYLES.index(name) if name in STYLES else len(STYLES))


def lines_of(names: Sequence[str]) -> dict[str, Line]:
    """A line for every name, all different up to 42 names. A style has the same one in every figure, whichever others
    are drawn; other names have theirs by their order."""
    if set(names) <= set(STYLES):
        return {name: LINES[STYLES.index(name)] for name in names}
    found = {}
    for at, name in enumerate(dict.fromkeys(names)):
        colour, dashes, marker = LINES[at % len(LINES)]
        found[name] = (colour, dashes, marker if at < len(LINES) else _MORE_MARKERS[at % len(_MORE_MARKERS)])
    return found


def tolerance_name(delta: float) -> str:
    """Of the line at delta, in a legend."""
    return f"δ = {delta:g}, the tolerance"
