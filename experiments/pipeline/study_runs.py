"""A study run from Python: what `semcal.run_study` is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.study import Study, load_study, parse
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study
from experiments.pipeline.run_study import run_study as run_prepared
from semcal.errors import UserError
from semcal.runs.run import Run


def run_study(study: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[Run]:
    """Run every cell of a study that is not finished yet; finished ones are left as they are.

    >>> runs = semcal.run_study(
    ...     {
    ...         "name": "first",
    ...         "output": folder,
    ...         "models": [{"path": "atlas:base", "name": "atlas"}],
    ...         "datasets": [{"kind": "atlas", "family": "facts", "n": 20}],
    ...         "styles": ["concise"],
    ...         "sampling": {"m": 5, "max_new_tokens": 12},
    ...         "probes": {"enabled": False},
    ...     }
    ... )
    >>> len(runs), runs[0].calibration()["n"]
    (1, 20)

    Args:
        study: A study file (YAML), or the same keys as a mapping.
        overrides: Changes to the file, each as `key=value`, e.g. "sampling.m=20".

    Returns:
        One run per cell of the grid.

    Raises:
        UserError: an invalid study, or whatever stops a cell; completed shards are saved.
    """
    if isinstance(study, Mapping) and overrides:
        raise UserError("overrides change a study file; change the mapping itself instead")
    parsed = parse(Study, study, "study") if isinstance(study, Mapping) else load_study(study, overrides)
    prepared = prepare_study(parsed)
    run_prepared(prepared, Reporter())
    return list(prepared.runs)
