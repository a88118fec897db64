"""What `semcal tilt`, `semcal gate` and a sweep over B found on runs, as tables of a results page and of the page of a
run.

Reads the files that they left in `looks/`, and leaves out a column that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.compare.remedies_side_by_side import LEARNT_FROM
from experiments.report.summary_table import interval, markdown_table, number
from semcal.runs.run import Run

REMEDIES_TOLD = (
    "Written by `semcal tilt`; every figure is of questions whose gold answers the remedy has not seen. Temperature, "
    "beta and tilt map the confidence of the samples and leave the answers as they are; a probe reads its confidence "
    "from one forward pass; the tilted model was asked again, with an adapter trained on gold answers to the other "
    f"half of the questions. {LEARNT_FROM[0].upper()}{LEARNT_FROM[1:]}. Change, less tilted: smECE minus that as "
    "sampled, and minus the tilted model's, on the same questions; where the interval of the change holds 0, it is not "
    "shown that the remedy mends or harms. Passes and tokens: forward passes, and tokens read and generated, for one "
    "question. Intervals are over questions, not over repeated trainings of the adapter."
)
GATES_TOLD = (
    "Written by `semcal gate`: the lowest threshold on each confidence that is known to keep the risk on questions to "
    "come, if their groups are drawn like those asked here; each group counts once, however many questions it has. Of "
    "the answers: with high probability (0.9 unless --delta said otherwise) at most that share of the answers given is "
    "wrong. Of the questions: the expected share of all questions that are answered wrongly (coverage times wrong) is "
    "at most the risk. Coverage is the share answered, "
    "and wrong the share of these that is wrong, of the questions asked here. Never: no threshold could be shown to "
    "keep the risk, which does not show that none would. Probes and the tilted model answer each question by a "
    "predictor fitted on the others, so for them the guarantee is approximate. Too few groups: not even if every "
    "answer were right. Error per question, where the true chance of an answer is known, as it is of the organism's: "
    "confidence of a single question minus that chance, root mean square over all questions, answered or not; no "
    "guarantee is about a single question."
)

ALL = "all"  # the row of all Bs of a sweep
SWEEP_TOLD = (
    "excess: smECE minus the mean of its null · KL gap: what a probe of the activations before the answer, or an "
    "adapter of the whole model (generative), misses of the distribution over B's classes, nats · ρ: Spearman's rank "
    "correlation of the two over Bs, with its interval over questions; given granularity (the entropy of B's classes "
    "over all questions), because joining classes shrinks both, whatever the mechanism · small gap: Bs whose gap is "
    "certainly below {small_gap:g} nats, and how many of those are certainly off by more than {delta:g} (Holm), which "
    "the theory forbids"
)


def remedies_table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per remedy of a run (`Run.remedies`), as text under readable titles."""
    columns: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
        "smece": ("smECE", lambda row: _with_interval(row, "smece")),
        "change": ("change", lambda row: _difference(row, "change")),
        "less": ("less tilted", lambda row: _difference(row, "less")),
        "signed_gap": ("signed gap", lambda row: number(row["signed_gap"], "+")),
        "accuracy": ("accuracy", lambda row: number(row["accuracy"])),
        "auroc": ("AUROC", lambda row: number(row["auroc"], digits=2)),
        "passes": ("passes", lambda row: _cost(row["passes"])),
        "tokens": ("tokens", lambda row: _cost(row["tokens"])),
    }
    shown = [column for name, column in columns.items() if name in found]
    rows = [{"remedy": row["remedy"], **{name: of(row) for name, of in shown}} for row in _records(found)]
    return pd.DataFrame(rows)


def gates_table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per confidence, guarantee and risk of a run (`Run.gates`), as text under readable titles."""
    return pd.DataFrame([_gate(row) for row in _records(found)])


def kinds_table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of B of a swept run (`Run.swept`), as text under readable titles."""
    return pd.DataFrame([_kind(row) for row in _records(found)])


def remedies_section(rows: Sequence[tuple[str, Run]]) -> list[str]:
    """Lines of Markdown, none where no run has remedies.

    Args:
        rows: Name and run.
    """
    return _section("Remedies", REMEDIES_TOLD, [(name, remedies_table(run.remedies())) for name, run in rows])


def gates_section(rows: Sequence[tuple[str, Run]]) -> list[str]:
    """Lines of Markdown, none where no run has gates; rows as in `remedies_section`."""
    return _section("Gates", GATES_TOLD, [(name, gates_table(run.gates())) for name, run in rows])


def sweeps_section(rows: Sequence[tuple[str, Run]], *, small_gap: float, delta: float) -> list[str]:
    """Lines of Markdown, none where no run was swept; rows as in `remedies_section`."""
    told = f"Written by `semcal score --semantics sweep`. {SWEEP_TOLD.format(small_gap=small_gap, delta=delta)}."
    return _section("One run under many Bs", told, [(name, kinds_table(run.swept())) for name, run in rows])


def _section(title: str, told: str, tables: Sequence[tuple[str, pd.DataFrame]]) -> list[str]:
    named = [table.assign(run=name) for name, table in tables if len(table)]
    if not named:
        return []
    whole = pd.concat(named, ignore_index=True).fillna("—")
    titles = ["run", *(name for name in whole if name != "run")]
    return ["", f"### {title}", "", *markdown_table(titles, whole[titles].to_numpy().tolist()), "", told]


def _records(found: pd.DataFrame) -> list[dict[Any, Any]]:
    return found.to_dict("records")


def _with_interval(row: Mapping[str, Any], name: str, sign: str = "", digits: int = 3) -> str:
    return interval(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"), sign, digits=digits)


def _difference(row: Mapping[str, Any], name: str) -> str:
    """That of a remedy from itself is 0 by definition."""
    return "—" if row.get(f"{name}_low") == row.get(f"{name}_high") == 0 else _with_interval(row, name, "+")


def _cost(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _gate(row: Mapping[str, Any]) -> dict[str, str]:
    threshold, guarantee = row.get("threshold", math.nan), row.get("guarantee")
    single = row.get("single_error", math.nan)
    where = "too few groups" if math.isnan(threshold) else "never" if math.isinf(threshold) else f"{threshold:.2f}"
    return {
        "confidence": row["source"],
        "guarantee": guarantee if isinstance(guarantee, str) else "—",
        "risk": f"{100 * row['risk']:g} %",
        "answer where ≥": where,
        "coverage": _share(row.get("coverage", math.nan)),
        "wrong": _share(row.get("wrong", math.nan)),
        **({} if math.isnan(single) else {"error per question": number(single)}),
    }


def _kind(row: Mapping[str, Any]) -> dict[str, str]:
    gap, excess = (
        f"{row[f'{name}_least']:{sign}.3f} to {row[f'{name}_most']:{sign}.3f}"
        for name, sign in (("gap", ""), ("excess", "+"))
    )
    shown = {"kind of B": row["kind"], "Bs": f"{row['bs']:.0f}", "probe": row["rung"], "KL gap": gap, "excess": excess}
    related = not math.isnan(row.get("rho", math.nan))
    return shown | {
        "ρ": _with_interval(row, "rho", digits=2) if related else "–",
        "ρ, given granularity": _with_interval(row, "rho_given", digits=2) if related else "–",
        "excess per nat": _with_interval(row, "slope") if related else "–",
        "small gap": f"{row['small']:.0f}, {row['violations']:.0f} off" if related else "–",
    }


def _share(value: float) -> str:
    return "—" if math.isnan(value) else f"{100 * value:.1f} %"
