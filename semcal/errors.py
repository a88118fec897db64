"""The two kinds of failure that a user meets: something to mend, and a model that broke."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; the message is one line that says what is wrong and how."""


class NonFiniteError(UserError):
    """A model produced NaN or infinity."""


def nearest(name: str, known: object) -> str:
    """', did you mean X?' where a known name is close to `name`, '' otherwise."""
    import difflib

    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)  # type: ignore[union-attr]
    return f", did you mean {close[0]!r}?" if close else ""
