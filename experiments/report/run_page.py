"""One run as figures and one self-contained HTML page."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from experiments.config.study import Cell
from experiments.report.captions import CAPTIONS, INTERVENTION, SECTIONS
from experiments.report.html_page import (
    HtmlTable,
    cell_text,
    gallery,
    html_table,
    save_figures,
    shown_path,
    title,
    write_page,
)
from experiments.report.intervention_table import EXPLANATION, HEADINGS, intervention_figures, intervention_rows
from experiments.report.run_figures import run_figures
from experiments.report.summary_table import remarks, summary_rows
from semcal.runs.run import Run


def write_report(cell: Cell, run: Run) -> list[str]:
    """Write figures/*.png and *.svg, and report.html with everything in it; returns the names of the figures.

    Figures that the run no longer has are removed.
    """
    folder = run.folder / "figures"
    pictures = save_figures(run_figures(cell, run), folder)
    changed = save_figures(intervention_figures(cell, run), folder)
    for path in folder.glob("*"):
        if path.stem not in pictures | changed:
            path.unlink()
    rest = {k: v for k, v in run.calibration().items() if not isinstance(v, str | list | dict)}
    values = _frame(rest).iloc[0]
    titles, (cells,) = summary_rows([(cell, run)])
    write_page(
        run.folder / "report.html",
        "run.html",
        title=cell.label,
        facts=_facts(cell, run),
        remarks=remarks(cell, run),
        headline=html_table(pd.DataFrame([cells[1:]], columns=pd.Index(titles[1:]))),
        figures=gallery(pictures, CAPTIONS),
        first=_first_question(run),
        sections=_sections(run),
        interventions=_interventions(run),
        changed=gallery(changed, dict.fromkeys(changed, INTERVENTION)),
        explanation=EXPLANATION,
        calibration=html_table(
            pd.DataFrame({"figure": list(map(title, values.index)), "value": values.to_numpy(object)})
        ),
        probes=html_table(run.probes()),
    )
    return [*pictures, *changed]


def _facts(cell: Cell, run: Run) -> str:
    """How the answers were sampled, in words."""
    manifest, exact = run.manifest(), run.manifest()["exact"]
    drawn = f"{manifest['sampling']['m']} samples each" if exact is None else f"enumerated to {exact['epsilon']:g}"
    work = next((w for w in manifest["sampling_work"] if "path" in w), {})
    paths = {"shared-prefix": "shared-prefix sampler", "served": f"served by {work.get('server')}"}
    path = paths.get(work.get("path", ""), work.get("path", "samples of another run"))
    why = f" because {work['why']}" if work.get("why") and work["path"] not in paths else ""
    return (
        f"{manifest['questions']} questions, {drawn} at temperature {manifest['sampling']['temperature']:g} "
        f"({path}{why}); B: {run.calibration()['semantics']}; model {shown_path(cell.model.path, run.folder)} "
        f"({manifest['weights_hash']}, {manifest['dtype']})."
    )


def _first_question(run: Run) -> dict[str, Any]:
    first = run.questions().iloc[0]
    samples, classes = run.samples(), run.classes()
    answers = samples.loc[samples["question_id"] == first["id"], ["text", "count", "logprob", "finish"]].head(5)
    classes = classes.loc[classes["question_id"] == first["id"], ["class", "count", "mass", "gold"]].head(5)
    return {
        "id": first["id"],
        "prompt": first["prompt"],
        "answers": html_table(answers),
        "classes": html_table(classes),
    }


def _interventions(run: Run) -> list[HtmlTable]:
    """One table per set of questions that was intervened on."""
    rows, tables = run.interventions(), []
    for _, some in () if rows.empty else rows.groupby("context", sort=False):
        cells = intervention_rows(some)
        frame = pd.DataFrame([texts for texts, _ in cells], columns=list(HEADINGS))
        tables.append(html_table(frame, minor=[of_controls for _, of_controls in cells]))
    return tables


def _sections(run: Run) -> list[dict[str, Any]]:
    """Title, text and table of what is behind the headline figures."""
    found = run.calibration() | {"probe_confidence": run.probe_confidence().to_dict("records")}
    if curve := found.get("m_curve"):
        found["m_curve"] = [row | {"m": str(row["m"] or "∞")} for row in curve]
    return [
        {"title": heading, "words": words, "table": html_table(_frame(found[key]))}
        for key, (heading, words) in SECTIONS.items()
        if found.get(key)
    ]


def _frame(section: dict[str, Any] | list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table, with each interval in brackets after its figure."""
    rows = section if isinstance(section, list) else [section]
    frame = pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows])
    for name in list(frame):
        for ends in ([f"{name}_low", f"{name}_high"], ["low", "high"] if name == "estimate" else []):
            if ends and set(ends) <= set(frame):
                frame[name] = [_with_interval(*row) for row in frame[[name, *ends]].to_numpy(float).tolist()]
                frame = frame.drop(columns=ends)
    return frame


def _with_interval(value: float, low: float, high: float) -> str:
    return cell_text(value) if math.isnan(low) else f"{cell_text(value)} [{cell_text(low)}, {cell_text(high)}]"
