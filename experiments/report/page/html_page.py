"""Self-contained HTML pages from the templates in `templates/`, with tables and embedded figures; figures on disk."""

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from semcal.runs.run import write_atomically

DPI = 150
_NUMBER = re.compile(r"[+\-−<]?\s*[\d∞—]")
_SCALE = 0.92  # of a figure's own size: two of 5 inches fit side by side
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


def write_page(path: Path, template: str, **parts: Any) -> None:
    """Render a template into a file."""
    text = templates.get_template(template).render(parts)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


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


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write NAME.png and NAME.svg of each; returns the PNGs by name."""
    pictures = {}
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=DPI)
            figure.set_layout_engine("none")  # the layout is final; computing it is half of the work
            body = buffer.getvalue()
            write_atomically(folder / f"{name}.{suffix}", lambda p, body=body: p.write_bytes(body))
            if suffix == "png":
                pictures[name] = body
    return pictures
