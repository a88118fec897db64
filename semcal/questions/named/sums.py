"""Sums of small numbers, every pair of a size once: questions whose difficulty is known and whose answers no one learnt
by heart."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from semcal.errors import UserError, nearest
from semcal.questions.question import Question
from semcal.questions.rows import Row

# Size -> ranges of the two numbers.
SIZES = {
    "1+1": (range(1, 10), range(1, 10)),
    "2+1": (range(10, 100), range(1, 10)),
    "2+2": (range(10, 100), range(10, 100)),
}


def sums_rows(path: Path | None, size: str | None) -> Iterator[Row]:
    """A row for each ordered pair: first, second.

    Args:
        size: Digits of the two numbers, a key of `SIZES`; "2+2" by default.

    Raises:
        UserError: a path, or an unknown size.
    """
    if path is not None:
        raise UserError(f"sums are generated and not read from {path}; leave path out")
    size = size or "2+2"
    if size not in SIZES:
        raise UserError(
            f"sums: {size!r} is not a valid split{nearest(size, SIZES)}; expected one of {', '.join(SIZES)}"
        )
    for number, (first, second) in enumerate(product(*SIZES[size]), start=1):
        yield Row({"first": first, "second": second}, f"sums, {size}: row {number}", number)


def sums(row: Row) -> Question:
    """What is 17 + 25? Both orders of a pair share a group. The chain of thought adds tens and units."""
    first, second = int(row.text("first")), int(row.text("second"))
    low, high = sorted((first, second))
    (tens_a, units_a), (tens_b, units_b) = divmod(first, 10), divmod(second, 10)
    units, tens, total = units_a + units_b, 10 * (tens_a + tens_b), first + second
    steps = [f"The units {units_a} and {units_b} make {units}."]
    if tens:
        steps += [
            f"The tens {10 * tens_a} and {10 * tens_b} make {tens}.",
            f"Together {tens} and {units} make {total}.",
        ]
    return row.question(
        id=f"sums-{first}+{second}",
        text=f"What is {first} + {second}?",
        answers=(str(total),),
        group=f"sums-{low}+{high}",
        worked={"cot": "\n".join([*steps, f"The answer is {total}."])},
    )
