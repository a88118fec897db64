"""A run, and a study, as figures and one self-contained HTML page each."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from experiments.config.study import Cell
from experiments.report.checks_table import TITLES, check_rows, cost_of_checks, failed_checks, files_check
from experiments.report.figures.figure_files import save_figures
from experiments.report.figures.run_figures import intervention_figures, run_figures
from experiments.report.figures.study_figures import study_figures
from experiments.report.intervention_table import EXPLANATION, HEADINGS, intervention_rows
from experiments.report.look_tables import (
    GATES_TOLD,
    REMEDIES_TOLD,
    SWEEP_TOLD,
    gates_table,
    kinds_table,
    remedies_table,
)
from experiments.report.page.captions import CAPTIONS, INTERVENTION, SECTIONS
from experiments.report.page.html_page import (
    HtmlTable,
    cell_text,
    gallery,
    html_table,
    shown_path,
    title,
    without_constants,
    write_page,
)
from experiments.report.page.run_data import run_data
from experiments.report.page.study_data import study_data
from experiments.report.page.verdict_section import verdict_section
from experiments.report.summary_table import labels, legend, remarks, summary_rows
from experiments.verdict.rules import SMALL_GAP
from semcal.runs.files import replacing
from semcal.runs.made_by import again
from semcal.runs.run import Run

HEADLINES = ("reliability", "layers", "commitment")  # of each run, where it has them


def write_report(cell: Cell, run: Run, width: float | None = None) -> list[str]:
    """Write figures/*.png, *.svg and *.pdf, and report.html with everything in it; returns the names of the figures.

    They replace the old ones together; figures that the run no longer has are removed. A run that is not scored yet
    gets a page of what there is. `width` of the figures is in inches, None for their own.
    """
    if not run.calibration():
        _write_unfinished(cell, run)
        return []
    with run.replacing() as new:
        pictures = save_figures(run_figures(new, width), new.place("figures"))
        changed = save_figures(intervention_figures(new, width), new.place("figures"))
        _write_page(cell, new, pictures, changed)
    for path in (run.folder / "figures").glob("*"):
        if path.stem not in pictures | changed:
            path.unlink()
    return [*pictures, *changed]


def _write_page(cell: Cell, run: Run, pictures: dict[str, bytes], changed: dict[str, bytes]) -> None:
    rest = {k: v for k, v in run.calibration().items() if not isinstance(v, str | list | dict)}
    values = _frame(rest).iloc[0]
    titles, (cells,) = summary_rows([(cell, run)])
    checks = _checks(run)
    probes, same = without_constants(run.probes())
    write_page(
        run.place("report.html"),
        "run.html",
        lambda taken: run_data(cell, run, taken),
        title=cell.label,
        facts=_facts(cell, run),
        remarks=[*failed_checks(checks[-1:]), *remarks(cell, run)],
        headline=html_table(pd.DataFrame([cells[1:]], columns=pd.Index(titles[1:]))),
        legend=legend(titles),
        browsable=True,
        figures=gallery(pictures, CAPTIONS),
        sections=[*_sections(run), *_of_looks(cell, run)],
        interventions=_interventions(run),
        changed=gallery(changed, dict.fromkeys(changed, INTERVENTION)),
        explanation=EXPLANATION,
        calibration=html_table(
            pd.DataFrame({"figure": list(map(title, values.index)), "value": values.to_numpy(object)})
        ),
        probes=html_table(probes),
        same_for_all=same,
        checks=html_table(pd.DataFrame(check_rows(checks), columns=list(TITLES))),
        cost_of_checks=cost_of_checks(run.manifest()["sampling_work"]),
    )


def _write_unfinished(cell: Cell, run: Run) -> None:
    """The page of a run that is not scored yet: what was asked, and the answers that are there. It does not take part
    in `Run.replacing`, since another process may be at work on the run."""
    checks = run.manifest().get("checks", [])
    asked, there = run.questions(), (run.folder / "questions.parquet").is_file()
    write_page(
        run.folder / "report.html",
        "run.html",
        lambda taken: run_data(cell, run, taken),
        title=cell.label,
        facts=f"{len(asked)} questions; model {shown_path(cell.model.path, run.folder)}.",
        remarks=[f"Not finished: {state(run)}. {again(run.folder)} goes on, and draws this page again."],
        headline=None,
        browsable=there,
        figures=[],
        sections=[],
        interventions=[],
        calibration=html_table(pd.DataFrame()),
        checks=html_table(pd.DataFrame(check_rows(checks), columns=list(TITLES))),
        cost_of_checks=cost_of_checks(run.manifest().get("sampling_work", [])),
    )


def state(run: Run) -> str:
    """How far a run is that is not scored, in words."""
    asked = len(run.questions())
    return f"{run.samples_so_far()['question_id'].nunique()} of {asked} questions are answered, none is scored"


def started(run: Run) -> bool:
    """Whether a run that is not scored has something to show."""
    return all((run.folder / name).is_file() for name in ("config.yaml", "questions.parquet"))


def _checks(run: Run) -> list[dict[str, Any]]:
    """The checks made while the run was sampled, and that of its files now."""
    return [*run.manifest().get("checks", []), asdict(files_check(run.unchanged()))]


def _facts(cell: Cell, run: Run) -> str:
    """How the answers were sampled, in words."""
    manifest, exact = run.manifest(), run.manifest()["exact"]
    drawn = f"{manifest['sampling']['m']} samples each" if exact is None else f"enumerated to {exact['epsilon']:g}"
    work = next((w for w in manifest["sampling_work"] if "path" in w), {})
    paths = {"shared-prefix": "shared-prefix sampler", "served": f"served by {work.get('server')}"}
    path = paths.get(work.get("path", ""), work.get("path", "samples of another run"))
    shown = {"pool": "exemplars of the project's pool; ", "dataset": "exemplars of the dataset; "}
    exemplars = shown.get(manifest.get("exemplars") or "", "")
    stored = f", {manifest['quantised']}" if manifest.get("quantised") else ""
    b = run.calibration()["semantics"]
    why = f" because {work['why']}" if work.get("why") and work["path"] not in paths else ""
    return (
        f"{manifest['questions']} questions, {drawn} at temperature {manifest['sampling']['temperature']:g} "
        f"({path}{why}); {exemplars}B: {b}; model {shown_path(cell.model.path, run.folder)} "
        f"({manifest['weights_hash']}, {manifest['dtype']}{stored})."
    )


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
    found: dict[str, Any] = run.calibration() | {"probe_confidence": run.probe_confidence().to_dict("records")}
    if curve := found.get("m_curve"):
        found["m_curve"] = [row | {"m": str(row["m"] or "∞")} for row in curve]
    if chains := found.get("chains"):
        found["chains"] = {name: value for name, value in chains.items() if name != "warning"}  # a remark says it
    return [
        {"id": key.replace("_", "-"), "title": heading, "words": words, "table": html_table(_frame(found[key]))}
        for key, (heading, words) in SECTIONS.items()
        if found.get(key)
    ]


def _of_looks(cell: Cell, run: Run) -> list[dict[str, Any]]:
    """The same of what `semcal tilt`, `semcal gate` and a sweep over B found, where they were called."""
    told = SWEEP_TOLD.format(small_gap=SMALL_GAP, delta=cell.calibration.delta)
    tables = (
        ("sweep", "The same samples under many Bs", told, kinds_table(run.swept())),
        ("tilt", "Remedies, with a tilted model", REMEDIES_TOLD, remedies_table(run.remedies())),
        ("gate", "Gates on each confidence", GATES_TOLD, gates_table(run.gates())),
    )
    return [
        {"id": key, "title": heading, "words": words.replace("`", ""), "table": html_table(table)}
        for key, heading, words, table in tables
        if len(table)
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


def write_study(
    name: str,
    rows: Sequence[tuple[Cell, Run]],
    folder: Path,
    width: float | None = None,
    unfinished: Sequence[tuple[Cell, Run]] = (),
) -> None:
    """Write report.html (runs, with a link to each) and figures/ (over runs) into the folder of a study.

    Args:
        rows: The scored runs, in the order of the page.
        width: Of the figures, inches; None for their own.
        unfinished: Runs that are not scored, to be listed with how far they are.
    """
    figures = study_figures(rows, width) if rows else {}
    names, cells = labels([cell for cell, _ in rows]), [cell for cell, _ in rows]
    links = [_link(run, folder) for _, run in rows]
    titles, figures_of = summary_rows(rows)
    data = study_data(rows, links)
    with replacing(folder) as staged:
        pictures = save_figures(figures, staged / "figures")
        write_page(
            staged / "report.html",
            "study.html",
            lambda _: data,
            title=name,
            facts=f"{len(rows)} run{'s'[: len(rows) > 1]}: {_grid(cells)}." if rows else "No run is scored yet.",
            summary=html_table(pd.DataFrame(figures_of, columns=pd.Index(titles)), links=links),
            legend=legend(titles),
            unfinished=[
                {"name": cell.label, "link": _link(run, folder), "state": state(run)} for cell, run in unfinished
            ],
            browsable=bool(data["sets"]),
            figures=gallery(pictures, CAPTIONS),
            runs=[
                {"name": n, "link": link, "facts": _short_facts(cell, run, folder), "figures": _pictures(run)}
                for n, link, (cell, run) in zip(names, links, rows, strict=True)
            ],
            remarks=[f"{n}: {said}" for n, row in zip(names, rows, strict=True) for said in remarks(*row)],
            **verdict_section(rows, links, folder),
        )


def _link(run: Run, folder: Path) -> str:
    """From the page of a study to that of a run: relative, so that the folder may be moved, served or sent."""
    return quote(Path(os.path.relpath(run.folder / "report.html", folder)).as_posix())


def _short_facts(cell: Cell, run: Run, folder: Path) -> str:
    n, semantics = (run.calibration()[name] for name in ("n", "semantics"))
    return f"{n} questions; B: {semantics}; model {shown_path(cell.model.path, folder)}."


def _pictures(run: Run) -> list[dict[str, Any]]:
    """The headline figures of one run, from its folder."""
    files = {n: run.folder / "figures" / f"{n}.png" for n in HEADLINES}
    return gallery({n: path.read_bytes() for n, path in files.items() if path.is_file()}, {})


def _grid(cells: Sequence[Cell]) -> str:
    """What varies over the runs, in words."""
    parts = {
        "models": [c.model.name for c in cells],
        "datasets": [c.dataset.name for c in cells],
        "styles": [c.style for c in cells],
        "B": [c.semantics.label for c in cells],
    }
    return "; ".join(f"{what} {', '.join(dict.fromkeys(names))}" for what, names in parts.items())
