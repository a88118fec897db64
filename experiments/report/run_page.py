"""One run as figures and one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.config.study import Cell
from experiments.report.captions import CAPTIONS, INTERVENTION
from experiments.report.intervention_table import EXPLANATION, HEADINGS, intervention_figures, intervention_rows
from experiments.report.markup import document, folded, gallery, table, write_figures
from experiments.report.pictures import run_figures
from experiments.report.sections import sections
from experiments.report.summary_table import COLUMNS, cells_of, headline, remarks
from semcal.runs.files import write_atomically
from semcal.runs.run import Run


def write_report(cell: Cell, run: Run) -> list[str]:
    """Write figures/*.png and *.svg, and report.html with everything in it; returns the names of the figures."""
    folder = run.folder / "figures"
    pictures = write_figures(run_figures(cell, run), folder)
    changed = write_figures(intervention_figures(cell, run), folder)
    text = page(cell, run, pictures, changed)
    write_atomically(run.folder / "report.html", lambda p: p.write_text(text, encoding="utf-8"))
    return [*pictures, *changed]


def page(cell: Cell, run: Run, pictures: Mapping[str, bytes], changed: Mapping[str, bytes]) -> str:
    """The page as HTML; pictures (PNG) are embedded, those of interventions in a section of their own."""
    manifest, calibration = run.manifest(), run.calibration()
    said = "".join(f'<p class="remark">{html.escape(r)}</p>' for r in remarks(cell, run))
    told = [f"<h2>{title}</h2><p>{words}</p>{table(frame)}" for title, words, frame in sections(run)]
    rest = {k: v for k, v in calibration.items() if not isinstance(v, str | list | dict)}
    figures = pd.DataFrame({"figure": list(rest), "value": pd.Series(list(rest.values()), dtype=object)})
    probes = run.probes()
    body = f"""<p>{manifest["questions"]} questions, {_drawn(manifest)} at temperature
{manifest["sampling"]["temperature"]:g} ({_path(manifest)}); B: {html.escape(str(calibration["semantics"]))}; model
{html.escape(str(manifest["model"]))} ({html.escape(str(manifest["weights_hash"]))}, {manifest["dtype"]}).</p>
{said}
{table(pd.DataFrame([cells_of(headline(run))]).rename(columns=COLUMNS))}
{gallery(pictures, CAPTIONS)}
{_first_question(run)}
{"".join(told)}
{_interventions(run, changed)}
<h2>Every figure of calibration</h2>
{folded(f"{len(rest)} figures", table(figures))}
<h2>Every probe</h2>
{"<p>none</p>" if probes.empty else folded(f"{len(probes)} rows, by target, position, rung and layer", table(probes))}
"""
    return document(cell.label, body)


def _first_question(run: Run) -> str:
    first = run.questions().iloc[0]
    samples, classes = run.samples(), run.classes()
    answers = samples.loc[samples["question_id"] == first["id"], ["text", "count", "logprob", "finish"]].head(5)
    classes = classes.loc[classes["question_id"] == first["id"], ["class", "count", "mass", "gold"]].head(5)
    return f"""<h2>What the model read and wrote</h2>
<p>The first question, <code>{html.escape(str(first["id"]))}</code>: prompt, answers, semantic classes.</p>
<pre>{html.escape(str(first["prompt"]))}</pre>
{table(answers)}{table(classes)}"""


def _interventions(run: Run, changed: Mapping[str, bytes]) -> str:
    """A table for each set of questions that was intervened on, and the figures of all."""
    rows = run.interventions()
    if rows.empty:
        return ""
    tables = []
    for _, some in rows.groupby("context", sort=False):
        cells = intervention_rows(some)
        frame = pd.DataFrame([its for its, _ in cells], columns=list(HEADINGS))
        tables.append(table(frame, minor=[of_controls for _, of_controls in cells]))
    return f"""<h2>Interventions</h2>
<p>What changing activations before generation did to the answers, sampled again with the same seeds.</p>
{gallery(changed, dict.fromkeys(changed, INTERVENTION))}
{"".join(tables)}
<p class="note">{html.escape(EXPLANATION)}</p>"""


def _drawn(manifest: dict[str, Any]) -> str:
    exact = manifest["exact"]
    return (
        f"{manifest['sampling']['m']} samples each" if exact is None else f"answers enumerated to {exact['epsilon']:g}"
    )


def _path(manifest: dict[str, Any]) -> str:
    """How the answers were drawn, in words."""
    work = next((w for w in manifest["sampling_work"] if "path" in w), {})
    path = {"shared-prefix": "shared-prefix sampler", "served": f"served by {work.get('server')}"}
    why = f" because {work['why']}" if work.get("why") else ""
    return html.escape(path.get(work.get("path", ""), f"{work.get('path', 'samples of another run')}{why}"))
