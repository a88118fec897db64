"""One run as figures and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import pandas as pd

from experiments.config import Cell
from experiments.report.pictures import run_figures
from experiments.report.sections import sections
from experiments.report.table import COLUMNS, cells_of, headline, remarks
from semcal.store import Run, write_atomically

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .75rem; text-align: right;
border-bottom: 1px solid #ddd; } th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } img { max-width: 100%; }
.remark { background: #fff4d6; padding: .5rem .75rem; margin: .5rem 0; } pre { background: #f6f6f6; padding: .75rem;
white-space: pre-wrap; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
"""


def write_report(cell: Cell, run: Run) -> None:
    """Write figures/*.png and *.svg, and report.html with everything in it."""
    pictures = {}
    for name, figure in run_figures(cell, run).items():
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150)
            figure.set_layout_engine("none")  # it lies where it lies; finding that out is half of the work
            body = buffer.getvalue()
            write_atomically(run.folder / "figures" / f"{name}.{suffix}", lambda p, body=body: p.write_bytes(body))
            pictures[name, suffix] = body
    text = page(cell, run, {name: body for (name, suffix), body in pictures.items() if suffix == "png"})
    write_atomically(run.folder / "report.html", lambda p: p.write_text(text, encoding="utf-8"))


def page(cell: Cell, run: Run, pictures: dict[str, bytes]) -> str:
    """The page as HTML; pictures (PNG) are embedded."""
    figures = cells_of(headline(run))
    manifest, calibration = run.manifest(), run.calibration()
    said = "".join(f'<p class="remark">{html.escape(r)}</p>' for r in remarks(cell, run))
    shown = "".join(
        f'<figure><img alt="{name}" width="440" src="data:image/png;base64,{base64.b64encode(body).decode()}"></figure>'
        for name, body in pictures.items()
    )
    first = run.questions().iloc[0]
    samples = run.samples()
    answers = samples.loc[samples["question_id"] == first["id"], ["count", "text", "logprob", "finish"]].head(5)
    classes = run.classes()
    classes = classes.loc[classes["question_id"] == first["id"], ["klass", "count", "mass", "is_gold"]].head(5)
    table = run.probes()
    probes = "<p>none</p>" if table.empty else _table(table)
    rest = {k: v for k, v in calibration.items() if not isinstance(v, str | list | dict)}
    told = [f'<h2>{t}</h2><p>{words}</p><div class="scroll">{_table(f)}</div>' for t, words, f in sections(run)]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(cell.label)}</title><style>{STYLE}</style>
<h1>{html.escape(cell.label)}</h1>
<p>{manifest["questions"]} questions, {_drawn(manifest)} at temperature
{manifest["sampling"]["temperature"]:g} ({_path(manifest)}); B: {html.escape(str(calibration["semantics"]))}; model
{html.escape(str(manifest["model"]))} ({html.escape(str(manifest["weights_hash"]))}, {manifest["dtype"]}).</p>
{said}
<div class="scroll">{_table(pd.DataFrame([figures]).rename(columns=COLUMNS))}</div>
{shown}
<h2>What the model read and wrote</h2>
<p>The first question, <code>{html.escape(str(first["id"]))}</code>: prompt, answers, semantic classes.</p>
<pre>{html.escape(str(first["prompt"]))}</pre>
<div class="scroll">{_table(answers)}{_table(classes)}</div>
{"".join(told)}
<h2>Every figure of calibration</h2>
<div class="scroll">{_table(pd.DataFrame({"figure": list(rest), "value": list(rest.values())}))}</div>
<h2>Probes by layer</h2>
<div class="scroll">{probes}</div>
</html>
"""


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


def _table(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.3f}", na_rep="—")
