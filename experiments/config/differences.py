"""What differs between two cells of a study: in what was sampled, in how it is analysed, in what is worth comparing."""

from __future__ import annotations

from typing import Any

from experiments.config.study import LABELS, Cell

FACTORS = ("model", "style", "B", "temperature")


def sampling_part(cell: Cell) -> dict[str, Any]:
    """What the samples and activations depend on: a run folder holds one configuration of these."""
    parts = {"model", "dataset", "style", "seed", "on_long_prompt", "prompting", "capture"}
    whole = cell.model_dump(mode="json", include=parts)
    for key in ("device", *LABELS):
        whole["model"].pop(key)
    sampling = cell.sampling.model_dump(mode="json", exclude={"max_rows", "max_new_tokens", "stop"})
    lengths = {"max_new_tokens": cell.sampling.length(cell.style), "stop": cell.sampling.stop}
    return whole | {"sampling": sampling | lengths}


def analysis_part(cell: Cell, stage: str) -> dict[str, Any]:
    """What the results of a stage ("score" or "probe") depend on, beside the samples."""
    if stage == "score":
        return cell.model_dump(mode="json", include={"semantics", "calibration"})
    kept = {"semantics": True, "probes": True, "calibration": {"level", "detail_draws"}}
    return cell.model_dump(mode="json", include=kept)


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """The first key in which two nested configurations differ, with both values; None if they agree."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{prefix}{key}."):
                return inner
        elif a != b:
            return f"{prefix}{key} was {a!r}, is now {b!r}"
    return None


def differing(a: Cell, b: Cell) -> list[str]:
    """The factors in which two cells differ, then other keys; datasets and M are left out."""
    one, two = _facts(a), _facts(b)
    return [key for key in one if one[key] != two[key]]


def _facts(cell: Cell) -> dict[str, Any]:
    sampling = cell.sampling.model_dump(exclude={"m", "max_rows", "shard_size", "temperature"})
    return {
        "model": cell.model.model_dump(exclude={"name", "device", *LABELS}),
        "style": cell.style,
        "B": cell.semantics.model_dump(exclude={"device", "url", "concurrency", "cache"}),
        "temperature": cell.sampling.temperature,
        "seed": cell.seed,
        **{f"sampling.{key}": value for key, value in sampling.items()},
        **{f"prompting.{key}": value for key, value in cell.prompting.model_dump().items()},
    }
