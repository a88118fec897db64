"""SimpleQA and SimpleQA Verified: short facts, each with one answer."""

import ast
import re

from semcal.questions.question import Question
from semcal.questions.rows import Row


def simpleqa(row: Row) -> Question:
    """A row of SimpleQA (metadata, problem, answer) or of SimpleQA Verified (original_index, problem, answer, urls, …).

    Questions about one page share a group.

    Raises:
        UserError: a column is missing, or metadata is not a Python dict.
    """
    verified = "original_index" in row.values
    return row.question(
        id=f"simpleqa-verified-{row.text('original_index'):0>5}" if verified else f"simpleqa-{row.number:05d}",
        text=row.text("problem"),
        answers=(row.text("answer"),),
        group=_page(row),
    )


def _page(row: Row) -> str:
    """The first source page of the question; empty if none is named."""
    if "urls" in row.values:
        urls = re.split(r",\s*(?=https?://)", row.text("urls"))
    elif row.values.get("metadata"):
        try:
            urls = ast.literal_eval(row.text("metadata")).get("urls", [])
        except (ValueError, SyntaxError, AttributeError):
            raise row.error("column 'metadata' is not a Python dict") from None
    else:
        urls = []
    return str(urls[0]).strip() if urls else ""
