"""The pages of docs/results/, written from run folders: `python -m experiments.report.results [NAME …]`.

Of cells that have no scored run folder, what was kept of them in `evidence/` beside the pages is read
(`runs_without_texts.py`).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.compare.compare_runs import in_quarters
from experiments.compare.pairs import scored
from experiments.compare.probe_rows import last_layer, probe_table, rung_rows
from experiments.compare.side_by_side import side_by_side
from experiments.config.run_folder import EVIDENCE, kept_run, stored_cell
from experiments.config.study import Cell
from experiments.report.figures import study_figures
from experiments.report.gallery import pictures
from experiments.report.intervention_table import EXPLANATION, HEADINGS, intervention_rows
from experiments.report.look_tables import gates_section, remedies_section, sweeps_section
from experiments.report.summary_table import (
    between_bounds,
    interval,
    legend,
    markdown_table,
    number,
    p_text,
    remarks,
    summary_rows,
)
from experiments.report.training_table import training_section
from experiments.verdict.rules import SMALL_GAP
from probes.evaluation.result import BASELINE
from probes.plots.rungs_figure import in_order
from semcal.errors import UserError
from semcal.runs.files import newest, write_atomically
from semcal.runs.run import Run

Rows = Sequence[tuple[Cell, Run]]
_DISTRIBUTIONS = (
    "KL gap, nats: what is missed of the class distribution of held-out questions at the last prompt token, the noise "
    "of finite M taken off, with its interval by group, at the last layer that a rung was fitted at; between: as far "
    "as the entropy is known from M samples; top class and rest, with theirs, add up to the gap (chain rule); perfect: "
    "95 % quantile of what a perfect predictor would be measured to have. The best layer is picked on the questions it "
    "is scored on, so its gap is too small; quote the last. Rungs stopped early (generative, density, MLP, "
    "attention) are fitted to four fifths of the training questions, the others to all. Classes and pooled: how many "
    'are told apart, and the share of the mass in "(other)"; seen mass: mean probability of the distinct answers seen.'
)
_TITLES = (
    *("run", "rung", "layer", "KL gap", "between", "top class", "rest", "perfect, 95 %", "best layer", "its gap"),
    *("n", "classes", "pooled", "seen mass"),
)
_TWO = ("concise", "cot")
_QUARTERS = (
    "Quarters of the groups of questions by the mean KL gap of the style whose gap is larger, from the smallest; "
    "excess: smECE minus the mean of its null in that quarter. Where chains of thought break calibration because the "
    "end of one cannot be foreseen, the difference is large where the gap is; what came out is said above. Per nat: "
    "slope of the difference on the mean gap, least squares over the quarters, with an error by groups, of which "
    "none is in two quarters; its p is not adjusted."
)
_SHARES = "Share explained of the KL to the run's own baseline, not to be compared between runs:"
_RUN, _VERDICT = "semcal run experiments/studies/{}.yaml", "semcal verdict experiments/studies/{}.yaml"
_CHAT = "'runs/real-lineage/dpo__*' 'runs/real-lineage/grpo__*'"
_BOTH = '--guarantee "of the answers" --guarantee "of the questions"'
COMMANDS = {
    "demo": [
        "make demo",
        "make organism-probes",
        "semcal intervene runs/demo/atlas-base__atlas-routes__concise__exact --kind steer -n 200",
    ],
    "lineage": [
        _RUN.format("lineage"),
        "semcal intervene runs/lineage/base__atlas-routes__concise__exact --rank 8 --random 100",
        _VERDICT.format("lineage"),
        "make lineage SEED=1 && make lineage SEED=2  # the same with models trained from other seeds",
    ],
    "chain": [_RUN.format("chain")],
    "shift": [_RUN.format("shift"), _VERDICT.format("shift")],
    "horizon": [_RUN.format("horizon") + " --set models.0.path=CHECKPOINT --set datasets.0.path=TEXT"],
    "checkpoints": ["make checkpoints"],
    "ablation": ["make ablation"],
    "mechanism": ["make mechanism"],
    "along-training": ["make along-training"],
    "difficulty": ["make difficulty"],
    "real": ["make real"],
    "real-lineage": [
        "make real-lineage  # trains what is missing, and calls these, with its SEMCAL_DATA, and `semcal verdict`",
        _RUN.format("real-lineage"),
        f"semcal tilt {_CHAT}",
        f"semcal gate {_CHAT} --risk 0.05 --risk 0.1 --risk 0.2 {_BOTH}",
    ],
}


def results_page(name: str, runs: Path, into: Path) -> str | None:
    """The page of a study as Markdown, with those of its variants (`NAME-…`); None if no run of it is scored."""
    kept = into / EVIDENCE.name
    parts = [(runs / one, _scored(runs / one, kept / one)) for one in variants(name, runs, kept)]
    parts = [(folder, rows) for folder, rows in parts if rows]
    if not parts:
        return None
    lines = [
        f"# Results: {name}",
        "",
        f"Written by `python -m experiments.report.results {name}` from run folders; do not edit. Commands:",
        "",
        *["```", *COMMANDS.get(name, [_RUN.format(name)]), "```"],
    ]
    figures = Path(os.path.relpath("figures", into)).as_posix()
    by_name = {folder.name: rows for folder, rows in parts}
    if name == "real" and "real" in by_name:
        lines += side_by_side(by_name["real"], by_name.get("real-cot", []), Path("figures"), figures)
    lines += _verdicts([folder for folder, _ in parts])
    for folder, rows in parts:
        lines += ["", f"## {folder.name}", "", _made(rows, kept / folder.name), *training_section(rows)]
        lines += [*_sections(rows), *_verdict(folder)]
    if shown := [p for p, place in pictures().items() if place.startswith(f"{name}/") and Path("figures", p).is_file()]:
        lines += ["", "## Figures", "", *(f"- [{picture}]({figures}/{picture})" for picture in shown)]
    return "\n".join(lines) + "\n"


def variants(name: str, *places: Path) -> list[str]:
    """A study and its variants, `NAME-…`, whose runs are in any of these folders."""
    found = {folder.name for place in places for folder in place.glob(f"{name}-*")}
    return [name, *sorted(found - COMMANDS.keys())]


def _scored(folder: Path, kept: Path) -> list[tuple[Cell, Run]]:
    """The scored runs of a study, and what was kept of others, in the order of figures."""
    found = {path.name: run for path in kept.glob("[!.]*") if (run := kept_run(path)) is not None}
    runs = [Run(path.parent) for path in folder.glob("*/config.yaml")]
    found |= {run.name: run for run in runs if run.calibration()}
    named = sorted(found.items(), key=lambda run: run[0].split("__"))
    return study_figures.in_order([(stored_cell(run), run) for _, run in named])


def _made(rows: Rows, kept: Path) -> str:
    """Where from, dates and package versions, from the manifests."""
    manifests = [run.manifest() for _, run in rows]
    days = sorted({m["started"] for m in manifests if "started" in m})
    versions = {f"{name} {m['packages'][name]}" for m in manifests for name in ("semcal", "torch", "transformers")}
    when = f"sampled {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}, " if days else ""
    beside = sum(run.folder.parent == kept for _, run in rows)
    place = f"{EVIDENCE.name}/{kept.name}"
    where = f"; {beside} from [{EVIDENCE.parent}/{place}]({place})" if beside else ""
    return f"{len(rows)} runs{where}, {when}{', '.join(sorted(versions))}."


def _sections(rows: Rows) -> list[str]:
    titles, cells = summary_rows(rows)
    names = [row[0] for row in cells]
    lines = ["", "### Summary", "", *markdown_table(titles, cells), "", f"{legend(titles)}."]
    finite = [[n, *_finite_m(run.calibration())] for n, (_, run) in zip(names, rows, strict=True)]
    titles = (
        "signed gap, plug-in",
        "signed gap, split-half",
        "signed gap, by mass",
        "signed gap, M → ∞",
        "smECE by mass",
        "seen mass",
        "within",
        "loss gap",
    )
    lines += ["", "### Finite M", "", *markdown_table(["run", *titles], finite)]
    lines += [
        "",
        "seen mass: mean probability of the distinct answers seen; within: the smallest error that the equivalence "
        "test rules out; loss gap: nats per question that the best tilt of the top class would recover.",
    ]
    named = [(n, run) for n, (_, run) in zip(names, rows, strict=True)]
    lines += _class_distributions(named)
    for n, run in named:
        lines += _interventions(n, run)
    delta = rows[0][0].calibration.delta
    lines += [*_two_styles(rows), *sweeps_section(named, small_gap=SMALL_GAP, delta=delta)]
    lines += [*remedies_section(named), *gates_section(named)]
    said = [f"- {n}: {remark}" for n, row in zip(names, rows, strict=True) for remark in remarks(*row)]
    return [*lines, *(["", "### Remarks", "", *said] if said else [])]


def _finite_m(c: dict[str, Any]) -> list[str]:
    by = {row["estimator"]: row for row in c.get("finite_m") or []}
    gaps = [by.get(name, {}) for name in ("plug-in", "split-half", "by mass", "M to infinity")]
    within, loss, mass = c.get("equivalence") or {}, c.get("loss_gap") or {}, by.get("by mass", {})
    return [
        *(interval(g.get("signed_gap"), g.get("signed_gap_low"), g.get("signed_gap_high"), "+") for g in gaps),
        interval(mass.get("smece"), mass.get("smece_low"), mass.get("smece_high")),
        number(c.get("seen_mass")),
        number(within.get("within")),
        interval(loss.get("estimate"), loss.get("low"), loss.get("high")),
    ]


def _class_distributions(rows: Sequence[tuple[str, Run]]) -> list[str]:
    """The rungs beside each other, if there are several; then a row for every rung and baseline of every run, closed
    and open classes alike."""
    cells, shares, by_run = [], [], {}
    for name, run in rows:
        found = by_run[name] = [] if (probes := probe_table(run)).empty else rung_rows(probes, "classes")
        seen = number(run.calibration().get("seen_mass"))
        for row in found:
            n_classes = "—" if math.isnan(row["n_classes"]) else f"{row['n_classes']:.0f}"
            pooled = "—" if math.isnan(row["pooled"]) else f"{row['pooled']:.0%}"
            of_run = [f"{row['n']:.0f}", n_classes, pooled, seen]
            cells.append([name, _rung(row), str(row["layer"]) or "—", *_gap_and_bracket(row), *_best(row), *of_run])
        end = last_layer(probes, "classes") if found else None
        if end is not None and not math.isnan(end["explained"] + end["pooled"]):
            shares.append([name, interval(end["explained"], end["low"], end["high"]), f"{end['pooled']:.0%}"])
    if not cells:
        return []
    said = ["", "### Class distribution before the answer", *_ladder(by_run)]
    said += ["", "Every rung and baseline of every run:", "", *markdown_table(_TITLES, cells), "", _DISTRIBUTIONS]
    if shares:
        said += ["", _SHARES, "", *markdown_table(("run", "last layer", "mass pooled"), shares)]
    return said


def _ladder(by_run: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row for every run, a column for every rung and baseline: its KL gap with the interval."""
    rungs = in_order(list(dict.fromkeys(str(row["rung"]) for found in by_run.values() for row in found)))
    if sum(not rung.startswith(BASELINE) for rung in rungs) < 2:
        return []
    gaps = {(n, row["rung"]): _gap_and_bracket(row)[0] for n in by_run for row in by_run[n]}
    cells = [[n, *(gaps.get((n, rung), "—") for rung in rungs)] for n in by_run]
    titles = ("run", *(_rung({"rung": rung}) for rung in rungs))
    return ["", "KL gap in nats, by rung and baseline:", "", *markdown_table(titles, cells)]


def _two_styles(rows: Rows) -> list[str]:
    """The same questions of one model, answered at once and by a chain of thought, in quarters by KL gap."""
    runs = {(cell.model.name, cell.dataset.name, cell.semantics.label, cell.style): run for cell, run in rows}
    table, told = [], []
    for (model, dataset, semantics, style), run in runs.items():
        short = runs.get((model, dataset, semantics, "concise"))
        if style != "cot" or short is None or (found := in_quarters(scored(short), scored(run))) is None:
            continue
        told.append(f"- {model} · {dataset}: {found.told(_TWO, stored_cell(run).calibration.level)}.")
        for number_of, q in enumerate(found.quarters, start=1):
            d = q.excess
            figures = (*map(number, q.gaps), number(d.a, "+"), number(d.b, "+"))
            difference = interval(d.estimate, d.low, d.high, "+")
            table.append(
                [f"{model} · {dataset}", found.rung, str(number_of), str(q.n), *figures, difference, p_text(q.holm)]
            )
    if not table:
        return []
    titles = ("questions", "rung", "quarter", "n", *(f"{what}, {s}" for what in ("KL gap", "excess") for s in _TWO))
    return [
        *("", "### The same questions in two styles", ""),
        *markdown_table((*titles, "difference", "p (Holm)"), table),
        *("", *told, "", _QUARTERS),
    ]


def _rung(row: dict[str, Any]) -> str:
    return str(row["rung"]).replace(BASELINE, "baseline: ")


def _gap_and_bracket(row: dict[str, Any]) -> list[str]:
    """A gap with its interval, its bracket, its parts with theirs, and its floor."""
    gap, *parts = (interval(row[n], row[f"{n}_low"], row[f"{n}_high"]) for n in ("gap", "gap_top", "gap_rest"))
    return [gap, between_bounds(row), *parts, number(row["gap_floor"])]


def _best(row: dict[str, Any]) -> list[str]:
    return [str(row["best_layer"]) or "—", number(row["best_gap"])]


def _interventions(name: str, run: Run) -> list[str]:
    if (frame := run.interventions()).empty:
        return []
    table = markdown_table(["changed", *HEADINGS[1:]], [cells for cells, _ in intervention_rows(frame)])
    return ["", f"### Interventions: {name}", "", *table, "", EXPLANATION]


def _verdicts(folders: Sequence[Path]) -> list[str]:
    """What was decided in each of several variants, side by side."""
    files = {f.name: newest(f, "verdict.json") for f in folders}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}
    if len(found) < 2:
        return []
    decided = {name: {h["key"]: h for h in verdict["hypotheses"]} for name, verdict in found.items()}
    first = next(iter(decided.values()))
    rows = [[key, first[key]["claim"], *(_decision(by_key.get(key)) for by_key in decided.values())] for key in first]
    return ["", "## Verdicts side by side", "", *markdown_table(["", "claim", *found], rows)]


def _decision(hypothesis: dict[str, Any] | None) -> str:
    if hypothesis is None:
        return "—"
    p = hypothesis["p"] if hypothesis["decision"] == "holds" else None
    return f"{hypothesis['decision']}{f' (p {p:.2g})' if p is not None else ''}"


def _verdict(folder: Path) -> list[str]:
    """verdict.md, two heading levels down."""
    if not (newest(folder, "verdict.json").is_file() and (path := newest(folder, "verdict.md")).is_file()):
        return []
    text = path.read_text(encoding="utf-8").rstrip()
    return ["", *(f"##{line}" if line.startswith("#") else line for line in text.split("\n"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(COMMANDS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--into", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    try:
        pages = {n: results_page(n, options.runs, options.into) for n in options.names or COMMANDS}
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    absent = [name for name, text in pages.items() if text is None]
    if absent and (options.names or len(absent) == len(pages)):
        sys.stderr.write(f"no scored run of {', '.join(absent)} below {options.runs}; `semcal run` the study first\n")
        raise SystemExit(2)
    for name, text in pages.items():
        if text is None:
            sys.stdout.write(f"{name}: no scored run below {options.runs}, skipped\n")
            continue
        path = options.into / f"{name}.md"
        write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
        sys.stdout.write(f"written: {path}\n")


if __name__ == "__main__":
    main()
