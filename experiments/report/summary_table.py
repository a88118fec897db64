"""The headline figures of runs, one row each, and remarks that a reader needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from experiments.config.study import Cell
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.questions.question import CONTINUATION
from semcal.runs.run import Run

COLUMNS = {
    "smece": "smECE",
    "published": "published",
    "null": "null (95 %)",
    "excess": "excess",
    "p": "p",
    "gap": "signed gap",
    "confidence": "confidence",
    "accuracy": "accuracy",
    "kl": "KL explained",
}


def headline(run: Run) -> dict[str, Any]:
    """Figures of one run by name; None where a stage has not run yet."""
    c = run.calibration()
    last = last_layer(run.probes(), "classes")
    if last is not None and math.isnan(last["explained"]):  # one class for every question: nothing to explain
        last = None
    return {
        "n": c.get("n"),
        "m": c.get("m"),
        "smece": c.get("smece"),
        "smece_low": c.get("smece_low"),
        "smece_high": c.get("smece_high"),
        "published": (run.config().get("published") or {}).get("smece"),
        "null_mean": c.get("null_mean"),
        "null_q95": c.get("null_q95"),
        "excess": c.get("excess"),
        "p_value": c.get("p_value"),
        "signed_gap": c.get("signed_gap"),
        "signed_gap_low": c.get("signed_gap_low"),
        "signed_gap_high": c.get("signed_gap_high"),
        "confidence": c.get("confidence"),
        "accuracy": c.get("accuracy"),
        "auroc": c.get("auroc"),
        "unparsed_share": c.get("unparsed_share"),
        "truncated_share": c.get("truncated_share"),
        "kl_explained": None if last is None else float(last["explained"]),
        "kl_low": None if last is None else float(last["low"]),
        "kl_high": None if last is None else float(last["high"]),
        "kl_layer": None if last is None else str(last["layer"]),
    }


def last_layer(probes: pd.DataFrame, target: str) -> dict[str, Any] | None:
    """The last layer's row for a target, by a linear probe at the last prompt token.

    Fixed before looking: the best of all layers would be picked on the very questions it is scored on. Every
    layer is in probes.parquet and in the layer curve.
    """
    if probes.empty:
        return None
    rows = linear(probes)
    rows = rows.loc[(rows["target"] == target) & (rows["position"] == LAST_PROMPT_TOKEN), :]
    return rows.iloc[-1].to_dict() if len(rows) else None


def linear(probes: pd.DataFrame) -> pd.DataFrame:
    """The rows of linear probes on the model's own activations; early runs have no others."""
    return probes.loc[probes["rung"] == "linear", :] if "rung" in probes else probes


def cells_of(figures: dict[str, Any]) -> dict[str, str]:
    """The same figures as text, by column of the table; what a paper published, where it did."""
    f = figures
    published = {} if f["published"] is None else {"published": _number(f["published"])}
    return {
        "smece": _with_interval(f, "smece"),
        **published,
        "null": f"{_number(f['null_mean'])} ({_number(f['null_q95'])})",
        "excess": _number(f["excess"], sign=True),
        "p": _number(f["p_value"]),
        "gap": _with_interval(f, "signed_gap", sign=True),
        "confidence": _number(f["confidence"]),
        "accuracy": _number(f["accuracy"]),
        "kl": "—"
        if f["kl_explained"] is None
        else f"{100 * f['kl_explained']:.0f} % [{100 * f['kl_low']:.0f}, {100 * f['kl_high']:.0f}]",
    }


def labels(cells: Sequence[Cell]) -> list[str]:
    """One name per cell: model, dataset, style and B, without what all of them share."""
    parts = [(c.model.name, c.dataset.name, c.style, c.semantics.label) for c in cells]
    telling = [i for i in range(4) if len({p[i] for p in parts}) > 1] or [1, 2]
    return [" · ".join(p[i] for i in telling) for p in parts]


def summary(rows: list[tuple[str, Run]]) -> Table:
    """A rich table of labelled runs."""
    caption = "[…] bootstrap intervals by group · KL explained: linear probe on the last layer, last prompt token"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=min(16, max((len(label) for label, _ in rows), default=0)))
    texts = [cells_of(headline(run)) for _, run in rows]
    shown = [c for c in COLUMNS if any(c in text for text in texts)]
    for c in shown:
        table.add_column(COLUMNS[c], justify="right", overflow="fold")
    for (label, _), text in zip(rows, texts, strict=True):
        table.add_row(label, *(text.get(c, "—") for c in shown))
    return table


def remarks(cell: Cell, run: Run) -> list[str]:
    """Caveats of the figures in words, worst first."""
    c = run.calibration()
    said = []
    if cell.published is not None:
        said.append(
            f"Published for this cell: smECE {cell.published.smece:.3f} ({cell.published.source}), measured with that "
            "paper's own questions, prompts and B."
        )
    if c["accuracy"] < 0.02:
        said.append(
            f"Accuracy is {c['accuracy']:.3f}: this model answers hardly any of these questions. Its calibration "
            "figure says how confident it is in wrong answers, and nothing about knowledge."
        )
    if c["unparsed_share"] > 0.05:
        said.append(
            f"{c['unparsed_share']:.1%} of the samples hold no answer in style {cell.style!r} (class unparsed)."
        )
    if c["truncated_share"] > 0.05 and cell.style != CONTINUATION:  # a continuation is cut by design
        said.append(
            f"{c['truncated_share']:.1%} of the samples were cut at {cell.sampling.length(cell.style)} new tokens; "
            "raise sampling.max_new_tokens."
        )
    if lost := c.get("judge_failed_to_shorten", 0) + c.get("judge_failed_to_compare", 0):
        said.append(
            f"The judge failed {lost} times: {c['judge_failed_to_shorten']} answers count as unparsed, "
            f"{c['judge_failed_to_compare']} pairs of phrases as different."
        )
    for work in run.manifest()["sampling_work"]:
        if check := work.get("check"):
            said.append(f"Served by {work['server']}: what it draws {check}.")
            break
    if c["unexplored"] > 0.05:
        said.append(
            f"Enumeration left {c['unexplored']:.1%} of the mass unexplored: confidences are lower bounds, too "
            "low by up to that much; raise sampling.exact.row_budget."
        )
    if c["n"] < 500 and c["null_mean"] >= 0.0005:
        said.append(
            f"Only {c['n']} questions: smECE has a floor of about {c['null_mean']:.3f} at this size; read the excess."
        )
    if run.manifest().get("cot_from_template"):
        said.append(
            "This dataset ships no worked solutions, so the exemplars' chain of thought is an empty phrase; do not "
            "read this as chain of thought."
        )
    if cell.sampling.temperature != 1 or cell.sampling.top_k is not None or cell.sampling.top_p is not None:
        said.append("Temperature, top-k or top-p change what is sampled: these are not samples from the model's own p.")
    return said


def _with_interval(figures: dict[str, Any], name: str, *, sign: bool = False) -> str:
    if figures[name] is None:
        return "—"
    low, high = _number(figures[f"{name}_low"], sign=sign), _number(figures[f"{name}_high"], sign=sign)
    return f"{_number(figures[name], sign=sign)} [{low}, {high}]"


def _number(value: float | None, *, sign: bool = False) -> str:
    return "—" if value is None else f"{value:{'+' if sign else ''}.3f}"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a GitHub table; bars within a cell are escaped."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") or " " for cell in row] for row in (titles, *rows)]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return [head, "|---" * len(titles) + "|", *body]
