"""A dry run as a table, notes and plain data."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.config.study import Cell
from experiments.pipeline.dry_run import OWN, STAND_IN, Planned, device_of
from experiments.terminal.fitted_table import FittedTable

MOST_ROWS = 48  # beyond them, one row per model
COLUMNS = ("cells", "questions", "prompt", "answer (most)", "tokens read", "generated (most)", "memory", "disk")
LEAVE_FIRST = ("prompt", "answer (most)", "disk", "questions", "tokens read", "memory")  # in a narrow terminal


def plan_table(planned: Sequence[Planned]) -> FittedTable:
    """One row per model, dataset and style, or where they are many per model, and the total."""
    rows: dict[str, list[Planned]] = {}
    for p in planned:
        cell = p.cell
        whole = f"{cell.model.name} · {cell.dataset.name} · {cell.style}"
        rows.setdefault(whole if len(planned) <= MOST_ROWS else cell.model.name, []).append(p)
    named = "model · dataset · style" if len(planned) <= MOST_ROWS else "model"
    table = FittedTable((named, *COLUMNS), first_out=LEAVE_FIRST)
    for name, some in rows.items():
        table.add_row(name, *_texts(some))
    table.add_row("total", *_texts(planned), style="bold")
    return table


def _texts(rows: Sequence[Planned]) -> tuple[str, ...]:
    most = [p.cell.sampling.length(p.cell.style) for p in rows]
    total, mark = _totals(rows), "" if all(p.real and p.read.tokenizer == OWN for p in rows) else "~"
    memory = [sum(size for what, size in p.memory.items() if what != "activations") for p in rows if p.memory]
    return (
        str(total["cells"]),
        f"{total['questions']:,}",
        mark + _span([round(p.read.prompt_tokens_mean) for p in rows]),
        f"~{_span([round(p.read.answer_tokens) for p in rows])} ({_span(most)})",
        mark + _count(total["prefill_tokens"]),
        f"~{_count(total['decode_tokens'])} ({_count(total['decode_tokens_most'])})",
        f"{_count(max(memory))}B" if memory else "?",
        f"{_count(total['activations_bytes'])}B" if memory else "?",
    )


def plan_notes(planned: Sequence[Planned]) -> list[str]:
    """What the columns say, what is estimated, and what papers published for these cells."""
    notes = [
        "prompt: tokens; without ~ they are counted with the model's own tokenizer on all questions; the rest is "
        "estimated, as if nothing had been sampled yet",
        "generated: answers as long as the gold answers (a chat's chain of thought and a continuation: "
        "max_new_tokens), in brackets all at max_new_tokens; the sampler decodes equal beginnings only once",
        "memory: at most, of this process, weights, keys and values of all that is in flight with answers at their "
        "longest, logits and temporaries; disk: activations",
    ]
    engines: dict[str, dict[str, None]] = {}
    for p in planned:
        engines.setdefault(engine_note(p.cell), {})[p.cell.model.name] = None
    notes += [f"engine of {_some(list(names))}: {why}" for why, names in engines.items()]
    if names := dict.fromkeys(p.cell.model.name for p in planned if p.read.tokenizer == STAND_IN):
        notes.append(f"no tokenizer on this machine for {_some(list(names))}: tokens are those of a stand-in")
    if names := dict.fromkeys(p.cell.dataset.name for p in planned if not p.real):
        notes.append(
            f"not on this machine: {_some(list(names))}; placeholders of the usual length replace the questions, and n "
            "is the size stated on the Hub"
        )
    published = [p.cell.published for p in planned if p.cell.published]
    return notes + [f"published for {' · '.join(f.cell)}: smECE {f.smece:.3f} ({f.source})" for f in published]


def engine_note(cell: Cell) -> str:
    """What answers the questions of a cell, and why that."""
    model, own = cell.model, "the project's own sampler"
    if model.is_served:
        return "the server that path names"
    if model.engine == "vllm":
        return f"vLLM, as the study says; {f'that at {model.served_at}' if model.served_at else 'in its own process'}"
    if cell.enumerated:
        return f"{own}, the only one that enumerates"
    device = device_of(model.device)
    if device == "cpu":
        return f"{own}, on a CPU faster than vLLM in every case measured (docs/engines.md names the command)"
    if device == "cuda":
        return (
            f"{own}, by default; whether vLLM is faster on CUDA is not measured: `python -m experiments.bench engines` "
            "measures it, and `engine: vllm` chooses it"
        )
    return f"{own}, by default; vLLM is not known to run on {device}"


def plan_data(planned: Sequence[Planned]) -> dict[str, Any]:
    """All of it as plain data, one record per cell."""
    return {
        "study": planned[0].cell.study,
        "cells": [_record(p, i) for p in planned for i in range(len(p.cells))],
        "totals": _totals(planned),
        "notes": plan_notes(planned),
    }


def _record(planned: Planned, index: int) -> dict[str, Any]:
    cell, first = planned.cells[index], planned.cell
    facts = {
        "model": cell.model.name,
        "engine": "served" if cell.model.is_served else cell.model.engine,
        "prompt_kind": cell.model.prompt,
        "dataset": cell.dataset.name,
        "style": cell.style,
        "semantics": cell.semantics.label,
        "m": cell.sampling.m,
        "max_new_tokens": cell.sampling.length(cell.style),
        "folder": cell.folder,
        "published": cell.published and cell.published.model_dump(include={"smece", "source"}),
        "samples_of": None if cell == first else first.folder,
        "questions": "real" if planned.real else "placeholders",
        "memory_bytes": planned.memory,
    }
    return (
        cell.model.model_dump(include={"path", "revision", "dtype"}) | facts | asdict(planned.read) | _tokens(planned)
    )


def _tokens(p: Planned) -> dict[str, int]:
    most = p.decode_tokens(p.cell.sampling.length(p.cell.style))
    decoded = p.decode_tokens(p.read.answer_tokens)
    return {"prefill_tokens": p.prefill_tokens, "decode_tokens": decoded, "decode_tokens_most": most}


def _totals(rows: Sequence[Planned]) -> dict[str, int]:
    tokens = [_tokens(p) for p in rows]
    return {
        "cells": sum(len(p.cells) for p in rows),
        "questions": sum(p.read.n for p in rows),
        **{name: sum(t[name] for t in tokens) for name in tokens[0]},
        "activations_bytes": sum(p.memory["activations"] for p in rows if p.memory),
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
