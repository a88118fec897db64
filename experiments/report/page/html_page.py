"""Self-contained HTML pages from the templates in `templates/`, with tables and embedded figures."""

import base64
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.report.figures.figure_files import DPI
from experiments.report.page.embedded import content_policy, data_element, script_element
from semcal.runs.run import write_atomically

_NUMBER = re.compile(r"[+\-−<]?\s*[\d∞—]")
_SCALE = 0.92  # of a figure's own size: two of 5 inches fit side by side
_ALWAYS_CARDS, _WIDE = 12, 7  # columns above which rows are cards in every window, and below 1,100 pixels
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor"')
SCRIPTS = {
    "run.html": ("page.js", "table.js", "plots.js", "browser.js"),
    "study.html": ("page.js", "table.js", "plots.js", "comparison.js"),
}
_NAMES = {
    "smece": "smECE", "skce": "SKCE", "ece": "ECE", "mce": "MCE", "auroc": "AUROC", "aurc": "AURC", "kl": "KL",
    "brier": "Brier", "m": "M", "holm": "(Holm)", "q95": "95 % quantile", "less": "minus", "id": "ID",
    "spearman": "Spearman",
}  # fmt: skip
templates = Environment(
    loader=PackageLoader("experiments.report.page"),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Row:
    """One row: (text, "text" or "number") per cell, the link of the first cell, and whether it is shown in grey."""

    cells: tuple[tuple[str, str], ...]
    link: str = ""
    minor: bool = False


@dataclass(frozen=True)
class HtmlTable:
    """A table as the templates show it: titles with their kind, and rows."""

    head: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @property
    def shape(self) -> str:
        """When its rows become cards, as CSS class: always, in a window of middling width, or in a narrow one ("")."""
        return "cards" if len(self.head) > _ALWAYS_CARDS else "wide" if len(self.head) > _WIDE else ""


def write_page(path: Path, template: str, data: Callable[[int], Any] | None = None, **parts: Any) -> None:
    """Render a template into a page with a table of contents, its style, its scripts and the data that they read.

    Args:
        template: of what is below the title.
        data: what the scripts read, given the bytes of the rest of the page; None for a page without.
        parts: of the template, `title` among them.
    """
    body = templates.get_template(template).render(parts)
    style, script = source("page.css"), "\n".join(map(source, SCRIPTS[template]))
    found = data(len(body.encode()) + len(style) + len(script)) if data else None
    text = templates.get_template("page.html").render(
        title=parts["title"],
        policy=content_policy(script),
        contents=[(name, Markup(words)) for name, words in _HEADING.findall(body)],
        style=Markup(style),
        body=Markup(body),
        data=data_element(found) if found else "",
        script=script_element(script),
    )
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def source(name: str) -> str:
    """A style sheet or script beside the templates, as it is."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def html_table(frame: pd.DataFrame, *, links: Sequence[str] = (), minor: Sequence[bool] = ()) -> HtmlTable:
    """A frame with readable column titles: text to the left, numbers to the right. `links` are the targets of the first
    cells, `minor` says which rows are shown in grey; both may be left out."""
    kinds = ["text" if _in_words(frame[column].tolist()) else "number" for column in frame]
    rows = [
        Row(
            tuple(zip(map(cell_text, values), kinds, strict=True)),
            links[at] if links else "",
            at < len(minor) and minor[at],
        )
        for at, values in enumerate(frame.itertuples(index=False, name=None))
    ]
    return HtmlTable(tuple(zip(map(title, frame), kinds, strict=True)), tuple(rows))


def without_constants(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A long table without the columns that are empty or the same in all rows, and the latter in words."""
    if len(frame) < 2:
        return frame, ""
    full = frame.dropna(axis="columns", how="all")
    same = [name for name in full if len(set(map(cell_text, full[name].tolist()))) == 1]
    words = ", ".join(f"{title(name)} {cell_text(full[name].iloc[0])}" for name in same)
    return full.drop(columns=same), words


def title(name: Any) -> str:
    """A column name in words: "null_q95" -> "null 95 % quantile", "p_value" -> "p"."""
    words = str(name).replace("p_value", "p").replace("_", " ").split(" ")
    return " ".join(_NAMES.get(word, word) for word in words)


def _in_words(column: Sequence[Any]) -> bool:
    """Whether it contains text that does not start like a number."""
    return any(isinstance(value, str | bool) and value != "" and not _NUMBER.match(str(value)) for value in column)


def cell_text(value: Any) -> str:
    """Three decimals, or two significant digits where that would read 0.000."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if 1e-9 < abs(value) < 0.0005 else f"{value:.3f}"


def gallery(pictures: Mapping[str, bytes], captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """PNGs for the template: base64, the width in pixels that gives all figures the same font size, and captions."""
    return [
        {
            "name": name,
            "data": base64.b64encode(png).decode(),
            "width": round(_SCALE * 96 / DPI * int.from_bytes(png[16:20], "big")),  # a PNG begins with its width
            "caption": captions.get(name, ""),
        }
        for name, png in pictures.items()
    ]


def shown_path(path: str, folder: Path) -> str:
    """A path as shown on a page in `folder`: relative, so that pages reveal no absolute paths."""
    return Path(os.path.relpath(path, folder)).as_posix() if Path(path).is_absolute() else path
