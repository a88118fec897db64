"""Two models on the same questions, side by side: what docs/results/real.md says before its tables of single runs."""

from collections.abc import Sequence
from pathlib import Path

from experiments.compare.pairs import scored
from experiments.config.study import Cell, load_study
from experiments.report.figures.figure_files import DPI
from experiments.report.summary_table import headline, interval, markdown_table, number, p_text
from experiments.report.verdict_tables import DETAIL, detail_rows
from experiments.verdict.calibration_claims import PREFERENCE, Law
from experiments.verdict.real_predictions import LEAST_RIGHT, PREDICTIONS, predictions
from experiments.verdict.rules import MOST_UNPARSED
from experiments.verdict.study_verdict import measured
from semcal.calibration.plots.reliability_diagram import reliability_grid
from semcal.runs.run import Run, write_atomically

Rows = Sequence[tuple[Cell, Run]]
STUDIES = Path(__file__).parents[1] / "studies"

# What the paper (arXiv 2511.04869) publishes for base models: (dataset, style) -> model and smECE.
PUBLISHED = {
    ("triviaqa", "sentence"): "Mistral-7B-v0.1 0.036, Qwen2.5-7B 0.030",
    ("simpleqa", "sentence"): "Llama-3.1-70B 0.031",
    ("gsm8k", "concise"): "Qwen2.5-7B 0.047, gemma-3-27b-pt 0.031",
}
# Figures of `accuracy_scan`, as at the head of real.yaml.
_CHOSEN = (
    "The three relations of LRE were chosen before the study was run, by accuracy alone, on questions that it does not "
    "evaluate (`python -m experiments.sample.accuracy_scan experiments/studies/real.yaml -n 40 -m 10`), so their "
    "accuracy is no sample of what these models know. The aim was that both be right on 20 to 80 %. Gemma met it "
    "(concise / sentence: sports 57 / 36 %, products 34 / 29 %, landmarks 52 / 26 %, with a standard error of about 6 "
    "points; the landmarks with n = 30, M = 4). SmolLM2 missed it in four of six cells (18 / 20 %, 16 / 21 %, "
    "11 / 19 %)."
)
_RUNS = (
    "n",
    "M",
    "accuracy",
    "confidence",
    "smECE",
    "null (95 %)",
    "excess",
    "p",
    "seen mass",
    "unparsed",
    "truncated",
)


def side_by_side(short: Rows, thinking: Rows, pictures: Path, link: str) -> list[str]:
    """The sections, as Markdown; draws the reliability diagrams into a folder.

    Args:
        short: Runs of both models in short styles.
        thinking: Runs of the base model that include cot; empty where they have not been made.
        pictures: Folder of pictures.
        link: The same folder, as the page refers to it.
    """
    lines = [*_predictions(short, thinking), *_beside_the_paper(short), *_every_run([*short, *thinking])]
    return [*lines, *_diagrams(short, pictures, link)]


def _predictions(short: Rows, thinking: Rows) -> list[str]:
    how = short[0][0].calibration
    law = Law(delta=how.delta, level=how.level, seed=short[0][0].seed)
    read = [[scored(run) for _, run in rows] for rows in (short, thinking)]
    by_mass = all(r.table.by_mass_left_out is not None for runs in read for r in runs)
    first, second = ([measured(r, by_mass) for r in runs] for runs in read)
    found = predictions(first, second, law, _unmeasured(short, thinking))
    rows, behind = [], []
    for v in found.verdicts:
        f, name = v.finding, PREDICTIONS[v.finding.key]
        figures = "; ".join(f"{p.what}: {p.unit} {interval(p.estimate, p.low, p.high, '+')}" for p in f.parts)
        why = f.reason or (f"{f.undecidable}; so far {figures}" if f.undecidable else figures)
        rows.append([name, v.decision, why, str(len(f.runs)), p_text(v.p_holm), p_text(v.p_against_holm)])
        if f.parts:
            behind += [
                "",
                f"{name}:",
                "",
                *markdown_table(DETAIL, detail_rows(v)),
            ]
    said = [
        "",
        "## The three predictions",
        "",
        *markdown_table(("prediction", "verdict", "because", "cells", "p (Holm)", "p against (Holm)"), rows),
        "",
        "Rule, written before the study was run: `experiments/verdict/real_predictions.py`. A cell counts if at most "
        f"{MOST_UNPARSED:.0%} of its samples are unparsed or truncated and between {LEAST_RIGHT:.0%} and "
        f"{1 - LEAST_RIGHT:.0%} of its questions are answered correctly. Figures of this section take confidence by "
        "mass where every run has it; those of the tables below are by counts, and differ a little.",
    ]
    if found.left_out:
        said += ["", "Cells that count for no prediction:", "", *(f"- {label}: {why}" for label, why in found.left_out)]
    chosen = any(cell.dataset.kind == "lre" for cell, _ in short)
    return [*said, *(["", _CHOSEN] if chosen else []), *behind]


def _unmeasured(short: Rows, thinking: Rows) -> dict[str, int]:
    """Key of a prediction -> cells that its study asks for and that have no scored run."""
    there = {(cell.study, run.name) for cell, run in (*short, *thinking)}
    planned = {name: load_study(STUDIES / f"{name}.yaml", []).cells() for name in ("real", "real-cot")}
    left = [cell for cells in planned.values() for cell in cells if (cell.study, Path(cell.folder).name) not in there]
    stages = {"H1": ("base",), "H2": PREFERENCE}
    found = {key: sum(cell.study == "real" and cell.model.stage in stages[key] for cell in left) for key in stages}
    return found | {"H3": sum(cell.study == "real-cot" for cell in left)}


def _beside_the_paper(rows: Rows) -> list[str]:
    table = []
    for cell, run in rows:
        if cell.model.stage == "base":
            f, theirs = headline(run), PUBLISHED.get((cell.dataset.name, cell.style), "—")
            own = interval(f["smece"], f["smece_low"], f["smece_high"])
            null = f"{number(f['null_mean'])} ({number(f['null_q95'])})"
            table.append([cell.dataset.name, cell.style, own, null, number(f["accuracy"]), theirs])
    titles = ("dataset", "style", f"smECE of {_base(rows)}", "null (95 %)", "accuracy", "published, other base models")
    said = (
        "Published figures are those of arXiv 2511.04869, measured with that paper's questions, prompts and B, where "
        "accuracy is higher; the null says what a calibrated model would show at our n and M."
    )
    return ["", "## Beside the paper's base models", "", *markdown_table(titles, table), "", said]


def _base(rows: Rows) -> str:
    return next((cell.model.name for cell, _ in rows if cell.model.stage == "base"), "the base model")


def _every_run(rows: Rows) -> list[str]:
    table = []
    for cell, run in rows:
        f = headline(run)
        table.append(
            [
                f"{cell.study}: {cell.label}",
                *(str(f["n"]), str(f["m"]), number(f["accuracy"]), number(f["confidence"])),
                interval(f["smece"], f["smece_low"], f["smece_high"]),
                f"{number(f['null_mean'])} ({number(f['null_q95'])})",
                *(number(f["excess"], "+"), p_text(f["p_value"]), number(f["seen_mass"])),
                *(f"{f[name]:.1%}" for name in ("unparsed_share", "truncated_share")),
            ]
        )
    return ["", "## Every run", "", *markdown_table(("run", *_RUNS), table)]


def _diagrams(rows: Rows, pictures: Path, link: str) -> list[str]:
    said = ["", "## Reliability diagrams side by side"]
    for style in dict.fromkeys(cell.style for cell, _ in rows):
        file = pictures / f"real-reliability-{style}.png"
        shown = {(c.dataset.name, c.model.name): r.plot.smoothed() for c, r in rows if c.style == style}
        figure = reliability_grid(shown)
        write_atomically(file, lambda path, figure=figure: figure.savefig(path, format="png", dpi=DPI))
        said += ["", f"### {style}", "", f"![One row a dataset, one column a model]({link}/{file.name})"]
    return said
