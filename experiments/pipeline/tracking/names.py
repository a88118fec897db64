"""The names under which W&B receives a cell: settings, tags, headline figures. docs/tracking.md lists them; they do not
change between versions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.compare.probe_rows import layer_rows, probe_table
from experiments.config.study import Cell
from experiments.report.summary_table import headline
from semcal.positions import block_of
from semcal.runs.files import content_key
from semcal.runs.run import Run

# Headline figures whose name in a table of semcal leaves out what they are of.
_OF_SMECE = {"null_mean": "smece_null", "null_q95": "smece_null_q95", "excess": "smece_excess", "p_value": "smece_p"}
_ALSO = tuple(f"{name}_{end}" for name in ("confidence", "accuracy", "auroc", "brier") for end in ("low", "high"))
TRAJECTORY = ("smece", "smece_excess", "signed_gap", "confidence", "accuracy", "kl_gap")
CURVE = ("gap", "gap_low", "gap_high", "explained", "pooled", "null_q95", "p_value")


def settings(cell: Cell, run: Run) -> dict[str, Any]:
    """The configuration, one key a value, and what the run found out: hashes, versions, B with its version."""
    manifest, asked = run.manifest(), run.questions()
    found = {
        "B": run.calibration().get("semantics", cell.semantics.label),
        "prompt_hash": content_key(sorted(asked["prompt_hash"])),
        "questions": len(asked),
        "checkpoint": manifest["model"],
        "checkpoint_commit": manifest.get("revision"),
        "checkpoint_step": cell.model.step,
        **{key: manifest.get(key) for key in ("weights_hash", "tokenizer_hash", "quantised")},
        **{f"packages.{name}": version for name, version in manifest["packages"].items()},
    }
    return _flat(cell.model_dump(mode="json", exclude={"folder", "tracking"})) | found


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, without what is not set."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def tags(cell: Cell, run: Run) -> list[str]:
    """Lineage, stage, dataset, style and B, so far as there are any."""
    b = run.calibration().get("semantics", cell.semantics.label)
    return [tag for tag in (cell.model.lineage, cell.model.stage or "", cell.dataset.name, cell.style, b) if tag]


def figures(run: Run) -> dict[str, Any]:
    """The headline figures that are known, by stable names."""
    named = {_OF_SMECE.get(name, name): value for name, value in headline(run).items()}
    c = run.calibration()
    named |= {name: c.get(name) for name in ("brier", *_ALSO)}
    if (published := named.pop("published")) is not None:
        named["published_smece"] = published
    return {name: value for name, value in named.items() if _is_known(value)}


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def layer_curve(run: Run) -> Iterator[dict[str, float]]:
    """A line per block with every figure of the probes fitted there: `layer`, and `probe/TARGET/POSITION/FIGURE`, or
    `probe/TARGET/POSITION/HOOK/FIGURE` where another hook than the residual stream after the block was read."""
    probes = probe_table(run)
    if probes.empty:
        return
    rows = layer_rows(probes)
    found = [(block_of(str(row["layer"])), row) for row in rows.to_dict("records")]  # pyright: ignore[reportCallIssue]
    for block in sorted({block for block, _ in found if block is not None}):
        line: dict[str, float] = {"layer": block}
        for row in (row for at, row in found if at == block):
            hook = re.sub(r"^blocks\.\d+\.(hook_)?", "", str(row["layer"]))
            parts = ["probe", row["target"], row["position"], *([] if hook == "resid_post" else [hook])]
            line |= {"/".join([*map(str, parts), name]): row[name] for name in CURVE if _is_known(row[name])}
        yield line


def trajectory(cell: Cell, found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a checkpoint along training, over its step; empty for any other model."""
    if cell.model.step is None:
        return {}
    kept = {f"trajectory/{name}": found[name] for name in TRAJECTORY if name in found}
    return {"checkpoint_step": cell.model.step} | kept
