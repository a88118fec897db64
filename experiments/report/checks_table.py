"""The checks made on a run, as rows for a page and as a table for a terminal; and the one made when it is read, of its
files."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.terminal.fitted_table import FittedTable
from semcal.runs.digests import Unchanged
from semcal.sampling.checks import FAILED, Check

UNCHANGED = "files as they were written"
TITLES = ("check", "outcome", "figure", "at most", "what was compared")
_COLOURS = {"passed": "green", "failed": "bold red", "not made": "yellow"}


def files_check(found: Unchanged) -> Check:
    """Whether the files of a run are as they were written, as a check like those of its sampling."""
    named = ", ".join(found.changed or found.unknown[:3])
    if not found.same and not found.changed:
        return Check.not_made(UNCHANGED, "an early version of semcal wrote them and kept no digests")
    more = f"; no digest of {len(found.unknown)}, e.g. {named}" if found.unknown and not found.changed else ""
    why = f": {named}" if found.changed else ""
    total = found.same + len(found.changed)
    return Check.of(UNCHANGED, len(found.changed), 0, f"files with another content than written, of {total}{why}{more}")


def cost_of_checks(work: Sequence[Mapping[str, Any]]) -> str:
    """What the checks of a run cost, in words; "" where it was not recorded.

    Args:
        work: `sampling_work` of the manifest, one entry per process that sampled.
    """
    known = [w for w in work if "check_cpu_seconds" in w]
    spent = sum(w["cpu_seconds"] for w in known)
    if not spent > 0:
        return ""
    checks = sum(w["check_cpu_seconds"] for w in known)
    return f"They took {checks:.1f} of the {spent:,.0f} CPU seconds of sampling, {checks / spent:.1%}."


def check_rows(checks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per check, as the manifest of a run holds it, with a dash for a figure that it does not have."""
    return [
        [check["name"], check["outcome"], *(_figure(check[key]) for key in ("figure", "limit")), check["why"]]
        for check in checks
    ]


def failed_checks(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark about each check that failed."""
    return [
        f"CHECK FAILED: {check['name']} is {check['figure']:.3g}, at most {check['limit']:.3g} is right "
        f"({check['why']}). Do not trust these figures."
        for check in checks
        if check["outcome"] == FAILED
    ]


def checks_table(checks: Sequence[Mapping[str, Any]]) -> FittedTable:
    """The rows for a terminal."""
    table = FittedTable(TITLES, left=2, right=1, first_out=TITLES[2:4][::-1])
    for row in check_rows(checks):
        table.add_row(*row, colours={1: _COLOURS[row[1]]})
    return table


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.2g}"
