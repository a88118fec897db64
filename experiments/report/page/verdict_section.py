"""The part of a study's page that shows what `semcal verdict` decided, each hypothesis with its evidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config.study import Cell
from experiments.report.page.html_page import html_table
from experiments.report.page.stored_verdict import stored_verdict
from experiments.report.verdict_tables import CELLS, DETAIL, cell_rows, detail_rows, summary_rows
from experiments.verdict.rules import CLAIMS
from semcal.runs.run import Run


def verdict_section(rows: Sequence[tuple[Cell, Run]], links: Sequence[str], folder: Path) -> dict[str, Any]:
    """What `semcal verdict` decided on the study, each hypothesis with its evidence; no verdicts where it did not."""
    stored = stored_verdict(folder)
    if stored is None:
        return {"verdicts": [], "decided": "", "outdated": []}
    link_of = {cell.label: link for (cell, _), link in zip(rows, links, strict=True)}
    shown = [
        {
            "id": verdict.finding.key.replace(" ", "-"),
            "key": verdict.finding.key,
            "claim": CLAIMS[verdict.finding.key],
            "decision": verdict.decision,
            "why": why,
            "parts": html_table(pd.DataFrame(detail_rows(verdict), columns=pd.Index(("part", *DETAIL[1:])))),
            "cells": html_table(
                pd.DataFrame(cell_rows(verdict), columns=pd.Index(CELLS)),
                links=[link_of.get(cell.label, "") for cell in verdict.finding.cells],
            ),
            "runs": [{"name": label, "link": link_of.get(label, "")} for label in verdict.finding.runs],
        }
        for verdict, (_, _, _, why, *_) in zip(stored.verdicts, summary_rows(stored.verdicts), strict=True)
    ]
    later = [cell.label for cell, run in rows if _scored_at(run) > stored.written]
    said = [f"Scored since these verdicts: {', '.join(later)}. `semcal verdict` decides again."] if later else []
    return {"verdicts": shown, "decided": stored.decided, "outdated": said}


def _scored_at(run: Run) -> float:
    path = run.folder / "calibration.json"
    return path.stat().st_mtime if path.is_file() else 0.0
