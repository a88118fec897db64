"""The headline figures of runs, one row each; remarks that a reader needs; and how all tables write figures."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.compare.probe_rows import bounds, last_layer, probe_remarks, probe_table, whole_model
from experiments.config.study import Cell
from experiments.report.checks_table import failed_checks
from experiments.terminal.fitted_table import FittedTable
from experiments.verdict.rules import MOST_UNPARSED
from probes.evaluation.folds import too_few_groups
from semcal.questions.question import CONTINUATION
from semcal.runs.run import Run

LORA, BETWEEN = "KL gap, LoRA", "KL gap between"
MANY_ONCE = 0.5  # of the samples in classes drawn once: from there on an entropy, and the gap, is hardly an estimate
COLUMNS = {
    "smece": "smECE",
    "published": "published",
    "null": "null (95 %)",
    "excess": "excess",
    "p": "p",
    "gap": "signed gap",
    "confidence": "confidence",
    "accuracy": "accuracy",
    "kl": "KL gap",
    "kl_between": BETWEEN,
    "kl_lora": LORA,
}
LEAVE_FIRST = ("published", "null (95 %)", LORA, "p", "confidence", "signed gap", "accuracy")  # in a narrow terminal
_NATS = ("gap", "gap_low", "gap_high", "gap_at_least", "gap_at_most", "pooled", "drawn_once")
_MARGINS = "[…] bootstrap intervals by group"
_CALIBRATION = (
    "null: mean and 95 % quantile of smECE of calibrated models at this number of questions and samples · excess: "
    "smECE minus that mean · signed gap: confidence minus accuracy"
)
_KL = (
    "KL gap: nats that a probe of the last layer at the last prompt token, linear or for open classes bilinear, misses "
    "of the class distribution, the noise of finite M taken off"
)
_KL_BETWEEN = (
    "between: as far as the entropy is known from M samples, where most of them are of classes that a question was "
    "answered with once"
)
_KL_LORA = "LoRA: the same of a rank-8 adapter of the whole model"
_FIGURES = (
    *("n", "m", "smece", "smece_low", "smece_high", "null_mean", "null_q95", "excess", "p_value"),
    *("signed_gap", "signed_gap_low", "signed_gap_high", "confidence", "accuracy", "auroc"),
    *("seen_mass", "unparsed_share", "truncated_share"),
)


KNOWN_ENOUGH = 0.9  # share of wrong answers whose form B knows, from which on nothing is said
WORTH_A_REMARK = 0.01  # share of unparsed samples; the page of a run shows what fewer of them change


def headline(run: Run) -> dict[str, Any]:
    """Figures of one run by name; None where a stage has not run yet, or knows none."""
    c, probes = run.calibration(), probe_table(run)
    return {
        **{name: c.get(name) for name in _FIGURES},
        "published": (run.config().get("published") or {}).get("smece"),
        **_gap_figures("kl", last_layer(probes, "classes") or {}),
        **_gap_figures("kl_lora", whole_model(probes, "classes") or {}),
    }


def _gap_figures(prefix: str, row: dict[str, Any]) -> dict[str, Any]:
    """The KL gap of a row of probes: names and layer of the probe, and its figures in nats."""
    named = {f"{prefix}_{name}": row.get(name) for name in ("rung", "layer")}
    found = {f"{prefix}_{name}": row.get(name) for name in _NATS}
    return named | {key: None if value is None or math.isnan(value) else value for key, value in found.items()}


def cells_of(run: Run) -> dict[str, str]:
    """The headline figures as text, by column of the table; `published` only where there is such a figure."""
    f = headline(run)
    published = {} if f["published"] is None else {"published": number(f["published"])}
    row = last_layer(probe_table(run), "classes")
    between = {} if (f["kl_drawn_once"] or 0) <= MANY_ONCE or row is None else {"kl_between": between_bounds(row)}
    lora = {} if f["kl_lora_gap"] is None else {"kl_lora": interval(*_kl(f, "kl_lora"))}
    return {
        "smece": interval(f["smece"], f["smece_low"], f["smece_high"]),
        **published,
        "null": f"{number(f['null_mean'])} ({number(f['null_q95'])})",
        "excess": number(f["excess"], "+"),
        "p": number(f["p_value"]),
        "gap": interval(f["signed_gap"], f["signed_gap_low"], f["signed_gap_high"], "+"),
        "confidence": number(f["confidence"]),
        "accuracy": number(f["accuracy"]),
        "kl": interval(*_kl(f, "kl")),
        **between,
        **lora,
    }


def between_bounds(row: dict[str, Any]) -> str:
    """The bracket of a KL gap."""
    return " to ".join(number(end) for end in bounds(row))


def _kl(figures: dict[str, Any], prefix: str) -> tuple[float | None, float | None, float | None]:
    return figures[f"{prefix}_gap"], figures[f"{prefix}_gap_low"], figures[f"{prefix}_gap_high"]


def legend(titles: Sequence[str], *, short: bool = False) -> str:
    """What the columns of a summary with these titles are; `short` leaves out those of calibration."""
    parts = [_MARGINS, *([] if short else [_CALIBRATION]), _KL]
    parts += [said for title, said in ((BETWEEN, _KL_BETWEEN), (LORA, _KL_LORA)) if title in titles]
    return " · ".join(parts)


def labels(cells: Sequence[Cell]) -> list[str]:
    """One name per cell: model, dataset, style and B, without those that all cells share."""
    parts = [(c.model.name, c.dataset.name, c.style, c.semantics.label) for c in cells]
    varying = [i for i in range(4) if len({p[i] for p in parts}) > 1] or [1, 2]
    return [" · ".join(p[i] for i in varying) for p in parts]


def summary_rows(rows: Sequence[tuple[Cell, Run]]) -> tuple[list[str], list[list[str]]]:
    """Column titles and one row per run, for a terminal, a page and Markdown alike."""
    texts = [cells_of(run) for _, run in rows]
    shown = [c for c in COLUMNS if any(c in text for text in texts)]
    names = labels([cell for cell, _ in rows])
    cells = [[name, *(text.get(c, "—") for c in shown)] for name, text in zip(names, texts, strict=True)]
    return ["run", *(COLUMNS[c] for c in shown)], cells


def remarks(cell: Cell, run: Run) -> list[str]:
    """Caveats about the figures in words, worst first."""
    c = run.calibration()
    said = failed_checks(run.manifest().get("checks", []))
    if cell.published is not None:
        said.append(
            f"Published for this cell: smECE {cell.published.smece:.3f} ({cell.published.source}), measured with that "
            "paper's own questions, prompts and B."
        )
    if c["accuracy"] < 0.02:
        said.append(
            f"Accuracy is {c['accuracy']:.3f}: this model answers hardly any of these questions correctly. Its "
            "calibration error only shows how confident it is in wrong answers."
        )
    if c.get("seen_mass") is not None and c["seen_mass"] < 0.5:
        said.append(
            f"The answers seen hold {c['seen_mass']:.0%} of the probability: confidence by mass rests mostly on counts "
            "of answers seen once."
        )
    if (bounds := c.get("unparsed")) and bounds["share"] >= WORTH_A_REMARK:
        said.append(_unparsed_remark(cell.style, bounds))
    if (known := c.get("wrong_answers_with_known_forms")) is not None and known < KNOWN_ENOUGH:
        said.append(
            f"B knows the form of {known:.0%} of the wrong answers. The others agree only with answers "
            "worded alike, which lowers confidence but not accuracy: the signed gap may be too low, and a calibrated "
            "model look unsure."
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
    for work in [w for w in run.manifest()["sampling_work"] if w.get("check")][-1:]:
        said.append(_served_remark(work))
    if c["unexplored"] > 0.05:
        said.append(
            f"Enumeration left {c['unexplored']:.1%} of the mass unexplored: confidences are lower bounds, too low by "
            "up to that much; raise sampling.exact.row_budget."
        )
    if c["n"] < 500 and c["null_mean"] >= 0.0005:
        said.append(
            f"Only {c['n']} question{'s' if c['n'] > 1 else ''}: smECE has a floor of about {c['null_mean']:.3f} at "
            "this size; read the excess."
        )
    if cell.probes.enabled and (reason := too_few_groups(len(set(run.questions()["group"])), cell.probes.folds)):
        said.append(f"Probes not computed: {reason}.")
    said += probe_remarks(run)
    if c.get("smece_low") is None:
        said.append("Intervals not computed: all questions are of one group, so there is nothing to resample.")
    if c.get("auroc") is None:
        said.append("AUROC not computed: the answers are all right, or all wrong.")
    if warning := (c.get("chains") or {}).get("warning"):
        said.append(warning)
    if run.manifest().get("cot_without_steps"):
        said.append(
            "The exemplars are multiple-choice questions without worked solutions, so they name the option and show no "
            "chain of thought; give the questions a solution in `worked`."
        )
    if cell.sampling.temperature != 1 or cell.sampling.top_k is not None or cell.sampling.top_p is not None:
        said.append("Temperature, top-k or top-p was changed: these are not samples from the model's own distribution.")
    return said


def _served_remark(work: dict[str, Any]) -> str:
    refused = work.get("refused", ())
    left_out = f" It does not take {', '.join(refused)}." if refused else ""
    return f"Served by {work['server']}; are these samples from the model itself? {work['check']}.{left_out}"


def _unparsed_remark(style: str, bounds: dict[str, Any]) -> str:
    share, low, high = (bounds[name] for name in ("share", "least_smece", "most_smece"))
    alone, gap = (bounds[f"parsed_only_{name}"] for name in ("smece", "signed_gap"))
    without = f", without {bounds['left_out']} questions that have none" if bounds["left_out"] else ""
    undecided = f" Above {MOST_UNPARSED:.0%}, no hypothesis is decided on this run." if share > MOST_UNPARSED else ""
    return (
        f"{share:.1%} of the samples contain no answer in style {style!r} (class "
        f"unparsed). Over four readings of them, smECE is between {number(low)} and {number(high)}; of the parsed "
        f"answers alone it is {number(alone)}, with a signed gap of {number(gap, '+')}{without}.{undecided}"
    )


# ---- text ------------------------------------------------------------------------------------------------------------


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """A figure with so many digits after the point; a dash for None and NaN. `sign` is "" or "+"."""
    return "—" if value is None or math.isnan(value) else f"{value:{sign}.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, sign: str = "", digits: int = 3) -> str:
    """A figure with its interval in brackets, if it has one."""
    text = number(value, sign, digits)
    if low is None or math.isnan(low):
        return text
    return f"{text} [{number(low, sign, digits)}, {number(high, sign, digits)}]"


def p_text(value: float | None) -> str:
    """A p-value with three digits."""
    return "< 0.001" if value is not None and value < 0.001 else number(value)


def text_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    first_out: Sequence[str] = (),
    caption: str = "",
) -> FittedTable:
    """A table for a terminal; see `FittedTable`."""
    table = FittedTable(titles, left=left, first_out=first_out, caption=caption)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a GitHub table; bars within a cell are escaped."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") or " " for cell in row] for row in (titles, *rows)]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return [head, "|---" * len(titles) + "|", *body]
