"""A dry run as a table, notes and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.pipeline.dry_run import STAND_IN, Planned

MOST_ROWS = 48  # beyond them, one row per model
_COLUMNS = (
    "cells",
    "questions",
    "prompt tokens",
    "new tokens (most)",
    "prefilled",
    "generated (most)",
    "memory",
    "disk",
)


def show_plan(planned: Sequence[Planned], console: Console, *, as_json: bool) -> None:
    """Print the table and the notes, or everything as JSON."""
    if as_json:
        console.print_json(data=plan_data(planned))
        return
    console.print(plan_table(planned))
    for note in plan_notes(planned):
        console.print(f"· {note}", highlight=False, markup=False, soft_wrap=True)


def plan_table(planned: Sequence[Planned]) -> Table:
    """One row per model × dataset × style, or per model in a large study; then the total."""
    by_model: dict[str, list[Planned]] = {}
    for p in planned:
        by_model.setdefault(p.cell.model.name, []).append(p)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("model, dataset · style", overflow="fold")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    for name, rows in by_model.items():
        detailed = len(planned) <= MOST_ROWS
        table.add_row(name, *_texts(rows), style="bold" if detailed else None)
        for p in rows if detailed else ():
            table.add_row(f"  {p.cell.dataset.name} · {p.cell.style}", *_texts([p]), end_section=p is rows[-1])
    table.add_row("total", *_texts(planned), style="bold")
    return table


def _texts(rows: Sequence[Planned]) -> tuple[str, ...]:
    most = [p.cell.sampling.length(p.cell.style) for p in rows]
    total, mark = _totals(rows), "" if all(p.exact for p in rows) else "~"
    memory = [p.memory.weights + p.memory.kv for p in rows if p.memory]
    return (
        str(total["cells"]),
        f"{total['questions']:,}",
        mark + _span([round(p.read.prefix + p.read.tail) for p in rows]),
        f"~{_span([round(p.read.answer) for p in rows])} ({_span(most)})",
        mark + _count(total["prefill_tokens"]),
        f"~{_count(total['decode_tokens'])} ({_count(total['decode_tokens_most'])})",
        f"{_count(max(memory))}B" if memory else "?",
        f"{_count(total['activations_bytes'])}B" if memory else "?",
    )


def plan_notes(planned: Sequence[Planned]) -> list[str]:
    """What the columns say, what is estimated, and what papers published for these cells."""
    said = [
        "prompt tokens without ~ are counted with the model's own tokenizer on all questions; the rest is estimated, "
        "as if nothing had been sampled yet",
        "generated: answers as long as the gold answers (a chat's chain of thought and a continuation: "
        "max_new_tokens), in brackets all at max_new_tokens; the sampler decodes equal beginnings only once",
        "memory: weights, and keys and values of one question with all its answers at their longest; disk: activations",
    ]
    if names := dict.fromkeys(p.cell.model.name for p in planned if p.read.tokenizer == STAND_IN):
        said.append(f"no tokenizer on this machine for {_some(list(names))}: tokens are those of a stand-in")
    if names := dict.fromkeys(p.cell.dataset.name for p in planned if not p.real):
        said.append(
            f"not on this machine: {_some(list(names))}; placeholders of the usual length replace the questions, and n "
            "follows the size that the Hub states"
        )
    published = [p.cell.published for p in planned if p.cell.published]
    return said + [f"published for {' · '.join(f.cell)}: smECE {f.smece:.3f} ({f.source})" for f in published]


def plan_data(planned: Sequence[Planned]) -> dict[str, Any]:
    """All of it as plain data, one record per cell."""
    return {
        "study": planned[0].cell.study,
        "cells": [_record(p, i) for p in planned for i in range(len(p.cells))],
        "totals": _totals(planned),
        "notes": plan_notes(planned),
    }


def _record(planned: Planned, index: int) -> dict[str, Any]:
    cell, first, read = planned.cells[index], planned.cells[0], planned.read
    return {
        "model": cell.model.name,
        "path": cell.model.path,
        "revision": cell.model.revision,
        "dtype": cell.model.dtype,
        "prompt_kind": cell.model.prompt,
        "dataset": cell.dataset.name,
        "style": cell.style,
        "semantics": cell.semantics.label,
        "n": read.n,
        "m": cell.sampling.m,
        "max_new_tokens": cell.sampling.length(cell.style),
        "folder": cell.folder,
        "published": None if cell.published is None else cell.published.model_dump(include={"smece", "source"}),
        "samples_of": None if cell == first else first.folder,
        "tokenizer": read.tokenizer,
        "questions": "real" if planned.real else "placeholders",
        "prompt": read.prompt,
        "prompt_tokens_mean": read.prefix + read.tail,
        "prompt_tokens_longest": read.longest,
        "prefix_tokens": read.prefix,
        "prefill_tokens": planned.prefill_tokens,
        "decode_tokens": planned.decode_tokens,
        "decode_tokens_most": planned.decode_tokens_most,
        "memory_bytes": None if planned.memory is None else asdict(planned.memory),
    }


def _totals(rows: Sequence[Planned]) -> dict[str, int]:
    return {
        "cells": sum(len(p.cells) for p in rows),
        "questions": sum(p.read.n for p in rows),
        "prefill_tokens": sum(p.prefill_tokens for p in rows),
        "decode_tokens": sum(p.decode_tokens for p in rows),
        "decode_tokens_most": sum(p.decode_tokens_most for p in rows),
        "activations_bytes": sum(p.memory.activations for p in rows if p.memory),
    }


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
