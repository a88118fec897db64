"""Figures on disk: PNG to look at, SVG and PDF to print."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from semcal.runs.files import write_atomically

DPI = 150
# Text stays text: journals want TrueType fonts, and Matplotlib's default embeds outlines as Type 3.
_EMBEDDED: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "semcal"}
_UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same figure is the same file


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write NAME.png, NAME.svg and NAME.pdf of each; returns the PNGs by name."""
    pictures = {}
    for name, figure in figures.items():
        for suffix, metadata in _UNDATED.items():
            buffer = io.BytesIO()
            with mpl.rc_context(_EMBEDDED):
                figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
            figure.set_layout_engine("none")  # the layout is final; computing it is half of the work
            body = buffer.getvalue()
            write_atomically(folder / f"{name}.{suffix}", lambda p, body=body: p.write_bytes(body))
            if suffix == "png":
                pictures[name] = body
    return pictures
