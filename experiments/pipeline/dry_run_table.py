"""A dry run as tables and as plain data; every figure in it is an estimate unless it says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.config.study import ModelConfig
from experiments.pipeline.dry_run import OWN, STAND_IN, DryRun, Planned

MOST_ROWS = 48  # beyond them, a row a model and one a dataset and style
_COST = ("prefill tokens", "decode tokens (most)", "GPUs", "GPU hours (most)", "activations")


def show_plan(found: DryRun, console: Console, *, as_json: bool) -> None:
    """Print tables and notes, or everything as JSON."""
    if as_json:
        console.print_json(data=plan_data(found))
        return
    for table in plan_tables(found):
        console.print(table)
    for note in plan_notes(found):
        console.print(f"· {note}", highlight=False, markup=False, soft_wrap=True)


def plan_tables(found: DryRun) -> list[Table]:
    """A row for each model × dataset × style with totals a model; of a large study the totals alone, and the tokens
    of datasets and styles beside them."""
    parts = [_cells(found)] if _by_cell(found) else [_models(found), _styles(found)]
    return [*parts, *([_published(found)] if found.study.published else [])]


def _by_cell(found: DryRun) -> bool:
    return len(found.planned) <= MOST_ROWS


def plan_notes(found: DryRun) -> list[str]:
    """The assumptions, and then what must be said beside the figures."""
    held = [f"{m.name}: {_held(_rows(found, m))}." for m in found.study.models] if _by_cell(found) else []
    return [
        *held,
        "Prompt tokens without ~ are counted, with the model's own tokenizer on all questions; everything else is "
        "estimated, nothing is measured; as if no cell had been sampled yet.",
        "decode tokens: as long as the gold answers in that style (a chat's chain of thought and a continuation: as "
        "max_new_tokens allows), the most in brackets. The sampler decodes equal beginnings once, so that fewer may be "
        "computed.",
        "GPUs: as many as hold the weights and the answers to one question at their longest, or more where that makes "
        "the GPU hours fewer.",
        f"GPU hours: {found.gpu.in_words()}. Loading weights, scoring and probing are left out.",
        *_remarks(found),
    ]


def plan_data(found: DryRun) -> dict[str, Any]:
    """All of it as plain data, a record for every cell."""
    return {
        "study": found.study.name,
        "estimated": True,
        "assumptions": asdict(found.gpu) | {"in_words": found.gpu.in_words()},
        "cells": [_record(planned, i) for planned in found.planned for i in range(len(planned.cells))],
        "totals": _totals(found.planned),
        "remarks": plan_notes(found),
    }


def _rows(found: DryRun, model: ModelConfig) -> list[Planned]:
    """What is planned for one model."""
    return [p for p in found.planned if p.cell.model.name == model.name]


def _record(planned: Planned, index: int) -> dict[str, Any]:
    cell, first = planned.cells[index], planned.cells[0]
    config = cell.model
    return {
        "model": config.name,
        "path": config.path,
        "revision": config.revision,
        "dtype": config.dtype,
        "prompt_kind": config.prompt,
        "dataset": cell.dataset.name,
        "style": cell.style,
        "semantics": cell.semantics.label,
        "n": planned.read.n,
        "m": cell.sampling.m,
        "max_new_tokens": cell.sampling.length(cell.style),
        "folder": cell.folder,
        "published": None if cell.published is None else cell.published.model_dump(include={"smece", "source"}),
        "samples_of": None if cell == first else first.folder,
        "tokenizer": planned.read.tokenizer,
        "questions": "real" if planned.real else "placeholders",
        "prompt": planned.read.prompt,
        "prompt_tokens_mean": planned.read.prefix + planned.read.tail,
        "prompt_tokens_longest": planned.read.longest,
        "prefix_tokens": planned.work.prefix,
        "prefill_tokens": planned.work.prefill_tokens,
        "decode_tokens": planned.work.decode_tokens,
        "decode_tokens_most": planned.work.decode_tokens_most,
        "shape": None if planned.shape is None else asdict(planned.shape),
        "cost": None if planned.cost is None else asdict(planned.cost),
        "activations_bytes": None if planned.activations is None else asdict(planned.activations),
    }


def _totals(rows: Sequence[Planned]) -> dict[str, Any]:
    known = [p.cost for p in rows if p.cost]
    return {
        "cells": sum(len(p.cells) for p in rows),
        "questions": sum(p.read.n for p in rows),
        "prefill_tokens": sum(p.work.prefill_tokens for p in rows),
        "decode_tokens": sum(p.work.decode_tokens for p in rows),
        "decode_tokens_most": sum(p.work.decode_tokens_most for p in rows),
        "gpus": max((c.gpus for c in known), default=None),
        "hours": sum(c.hours for c in known) if known else None,
        "hours_most": sum(c.hours_most for c in known) if known else None,
        "activations_disk": sum(p.activations.disk for p in rows if p.activations) if known else None,
    }


def _total_texts(rows: Sequence[Planned]) -> tuple[str, ...]:
    t = _totals(rows)
    hours = "?" if t["hours"] is None else f"{_hours(t['hours'])} ({_hours(t['hours_most'])})"
    return (
        _count(t["prefill_tokens"]),
        f"{_count(t['decode_tokens'])} ({_count(t['decode_tokens_most'])})",
        str(t["gpus"] or "?"),
        hours,
        "?" if t["activations_disk"] is None else _bytes(t["activations_disk"]),
    )


# ---- tables -------------------------------------------------------------------------------------------------------


def _cells(found: DryRun) -> Table:
    table = _table("model, dataset · style", "n", "M", "prompt tokens", "new tokens", *_COST)
    for model in found.study.models:
        rows = _rows(found, model)
        table.add_row(model.name, "", "", "", "", *_total_texts(rows), style="bold")
        for i, p in enumerate(rows, start=1):
            mark = "" if p.read.tokenizer == OWN and p.real else "~"
            table.add_row(
                f"  {p.cell.dataset.name} · {p.cell.style}",
                f"{p.read.n:,}",
                str(p.cell.sampling.m),
                f"{mark}{p.read.prefix + p.read.tail:.0f}",
                f"{p.read.answer:.0f} ({p.cell.sampling.length(p.cell.style)})",
                *_total_texts([p]),
                end_section=i == len(rows),
            )
    table.add_row("total", "", "", "", "", *_total_texts(found.planned), style="bold")
    return table


def _models(found: DryRun) -> Table:
    table = _table("model", "prompt", "size", "weights", "KV", "runs", *_COST)
    for model in found.study.models:
        rows = _rows(found, model)
        costs = [p.cost for p in rows if p.cost]
        shape = rows[0].shape
        table.add_row(
            model.name,
            model.prompt,
            "?" if shape is None else _count(shape.parameters),
            _bytes(costs[0].weights_bytes) if costs else "?",
            _bytes(max(c.kv_bytes for c in costs)) if costs else "?",
            str(_totals(rows)["cells"]),
            *_total_texts(rows),
        )
    table.add_section()
    table.add_row(
        "total", "", "", "", "", str(_totals(found.planned)["cells"]), *_total_texts(found.planned), style="bold"
    )
    return table


def _styles(found: DryRun) -> Table:
    """Tokens by dataset, style and kind of prompt; of models with tokenizers of their own, least to most."""
    table = _table("dataset", "style", "prompt", "n", "M", "prompt tokens", "longest", "new tokens", "at most")
    together: dict[tuple[str, str, str], list[Planned]] = {}
    for p in found.planned:
        together.setdefault((p.cell.dataset.name, p.cell.style, p.cell.model.prompt), []).append(p)
    for (dataset, style, prompt), rows in together.items():
        mark = "" if all(p.read.tokenizer == OWN and p.real for p in rows) else "~"
        table.add_row(
            dataset,
            style,
            prompt,
            _span([p.read.n for p in rows]),
            str(rows[0].cell.sampling.m),
            mark + _span([round(p.read.prefix + p.read.tail) for p in rows]),
            mark + _span([p.read.longest for p in rows]),
            mark + _span([round(p.read.answer) for p in rows]),
            str(rows[0].cell.sampling.length(style)),
        )
    return table


def _published(found: DryRun) -> Table:
    table = _table("published for", "smECE", "source")
    for p in found.planned:
        if figure := p.cell.published:
            table.add_row(" · ".join(figure.cell), f"{figure.smece:.3f}", figure.source)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="left" if title in ("style", "prompt", "source") else "right", no_wrap=True)
    return table


def _held(rows: Sequence[Planned]) -> str:
    """A model's memory in words."""
    shape, costs = rows[0].shape, [p.cost for p in rows if p.cost]
    if shape is None or not costs:
        return "size unknown"
    return (
        f"{_count(shape.parameters)} parameters ({shape.source}), {rows[0].cell.model.dtype}: weights "
        f"{_bytes(costs[0].weights_bytes)}, KV {_bytes(max(c.kv_bytes for c in costs))}"
    )


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _hours(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


# ---- words --------------------------------------------------------------------------------------------------------


def _remarks(found: DryRun) -> list[str]:
    """What must be said beside the figures."""
    study, said = found.study, []
    stand_ins = list(dict.fromkeys(p.cell.model.name for p in found.planned if p.read.tokenizer == STAND_IN))
    if stand_ins:
        said.append(
            f"{len(stand_ins)} of {len(study.models)} models have no tokenizer on this machine ({_some(stand_ins)}): "
            "their tokens are those of a stand-in, which cuts text into words and marks."
        )
    made_up = list(dict.fromkeys(p.cell.dataset.name for p in found.planned if not p.real))
    if made_up:
        said.append(
            f"{_some(made_up)}: not on this machine; placeholders of the usual lengths stand for the questions, and n "
            "follows the size that the Hub states."
        )
    for source, words in (
        ("table", "the parameters of its name and the layers of a built-in table"),
        ("name", "the parameters of its name and the layers of a rule of thumb"),
    ):
        named = list(dict.fromkeys(p.cell.model.name for p in found.planned if p.shape and p.shape.source == source))
        if named:
            said.append(f"{_some(named)}: no configuration on this machine; {words} are used.")
    for model in study.models:
        rows = _rows(found, model)
        if rows[0].shape is None:
            why = "it is served elsewhere" if model.is_served else "neither a configuration nor its name tells its size"
            said.append(f"{model.name}: memory and hours are unknown, for {why}.")
    said += _about_gpus(found) + _about_context(found)
    return said


def _about_gpus(found: DryRun) -> list[str]:
    needs = {
        m.name: max(p.cost.gpus for p in _rows(found, m) if p.cost)
        for m in found.study.models
        if any(p.cost for p in _rows(found, m))
    }
    if not needs:
        return []
    largest = max(needs, key=lambda name: needs[name])
    if needs[largest] == 1:
        return [f"Every model fits on one {found.gpu.name}."]
    said = [f"{largest} takes the most: {needs[largest]} × {found.gpu.name}."]
    single = [m.name for m in found.study.models if needs.get(m.name, 1) > 1 and m.device != "balanced"]
    if single:
        said.append(f"{_some(single)}: more than one GPU; set their device to balanced.")
    return said


def _about_context(found: DryRun) -> list[str]:
    """Of estimates alone: prompts that were counted in earnest are refused or dropped as the study says."""
    said = []
    for p in found.planned:
        need = p.read.longest + p.cell.sampling.length(p.cell.style)
        if not (p.read.tokenizer == OWN and p.real) and p.shape and need > (p.shape.context or need):
            said.append(
                f"{p.cell.label}: prompt and answer may come to {need:,} tokens, and the context holds "
                f"{p.shape.context:,}; on_long_prompt is {p.cell.on_long_prompt}."
            )
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
