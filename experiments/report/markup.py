"""A self-contained HTML page from its parts: text, tables, figures. Knows nothing of runs."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from semcal.runs.files import write_atomically

DPI = 150
_NUMBER = re.compile(r"[+\-−<]?\s*[\d∞—]")
_SCALE = 0.92  # of a figure's own size: two of 5 inches stand side by side
STYLE = """
:root { color-scheme: light; } * { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222;
background: #fff; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; } a { color: #0057a0; }
h1, h2, p, code { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th { vertical-align: bottom; } td.number { white-space: nowrap; }
th.text, td.text { text-align: left; min-width: 6rem; } tr.minor { color: #6b6b6b; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; margin: 1.5rem 0; }
figure { margin: 0; max-width: 100%; } img { max-width: 100%; height: auto; display: block; }
figcaption, .note { font-size: .85rem; line-height: 1.4; color: #555; }
.remark { background: #fff4d6; padding: .5rem .75rem; margin: .5rem 0; } pre { background: #f6f6f6; padding: .75rem;
white-space: pre-wrap; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
summary { cursor: pointer; color: #0057a0; }
"""


def document(title: str, body: str) -> str:
    """A whole page; the title is escaped, the body is HTML."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
{body}
</html>
"""


def table(frame: pd.DataFrame, *, links: Sequence[str] = (), minor: Sequence[bool] = ()) -> str:
    """A frame as a table that scrolls where it is too wide; numbers to the right, three digits after the point.

    Args:
        links: [row] where the words of the first column lead; none if empty.
        minor: [row] which stand in grey.
    """
    kinds = ["text" if _in_words(frame[column].tolist()) else "number" for column in frame]
    head = "".join(f'<th class="{kind}">{html.escape(str(c))}</th>' for c, kind in zip(frame, kinds, strict=True))
    rows = []
    for at, values in enumerate(frame.itertuples(index=False, name=None)):
        cells = [_cell(value) for value in values]
        if links:
            cells[0] = f'<a href="{html.escape(links[at])}">{cells[0]}</a>'
        style = ' class="minor"' if at < len(minor) and minor[at] else ""
        body = "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(cells, kinds, strict=True))
        rows.append(f"<tr{style}>{body}</tr>")
    lines = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def _in_words(column: Sequence[Any]) -> bool:
    """Whether it holds text that does not begin like a number, as one with an interval or a percent sign does."""
    return any(isinstance(value, str) and value and not _NUMBER.match(value) for value in column)


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "—"
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))


def folded(summary: str, body: str) -> str:
    """What is long and seldom read, behind a line to click."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def gallery(pictures: Mapping[str, bytes], captions: Mapping[str, str]) -> str:
    """PNGs by name, embedded, each at one scale so that their letters are of one size, with a caption where known."""
    shown = []
    for name, png in pictures.items():
        width = round(_SCALE * 96 / DPI * int.from_bytes(png[16:20], "big"))  # PNG: the header begins with the width
        caption = f"<figcaption>{html.escape(captions[name])}</figcaption>" if name in captions else ""
        data = base64.b64encode(png).decode()
        image = f'<img alt="{html.escape(name)}" width="{width}" src="data:image/png;base64,{data}">'
        shown.append(f'<figure style="width: {width}px">{image}{caption}</figure>')
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def write_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write NAME.png and NAME.svg of each; returns the PNGs by name."""
    pictures = {}
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=DPI)
            figure.set_layout_engine("none")  # it lies where it lies; finding that out is half of the work
            body = buffer.getvalue()
            write_atomically(folder / f"{name}.{suffix}", lambda p, body=body: p.write_bytes(body))
            if suffix == "png":
                pictures[name] = body
    return pictures
