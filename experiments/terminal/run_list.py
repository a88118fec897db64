"""What `semcal ls` shows of a run: its state and headline figures, read from its small files.

Five hundred runs are read in less than a second: nothing here imports torch, pandas or the schema of a study. What a
run holds is told by `semcal.runs.run` and `experiments.report.summary_table` to everyone else; a test asserts that
both say the same.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cluster.study_state import Held, held_of, last_words, partly_answered
from semcal.errors import UserError
from semcal.runs.digests import DIGESTS, changed, digest, read_digests
from semcal.runs.failure import failure_of
from semcal.runs.files import newest
from semcal.runs.made_by import again

KEPT = "results kept, no texts"
_INSIDE = ("wandb", "looks")  # folders of a run that hold no further runs
_PROBES_OFF = re.compile(r"^probes:\n(?:  .*\n)*?  enabled: false$", re.MULTILINE)
KL = ("gap", "gap_low", "gap_high")


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        state: In words.
        figures: n, smece, smece_low, smece_high, excess, kl_gap, kl_gap_low, kl_gap_high; None where unknown.
        problem: Why it cannot be read; "" where it can.
        held: Who is at work on it or on a part of it, or died over it.
        failed: Who failed over it since, when and why; "" where nobody did.
    """

    folder: Path
    state: str
    figures: dict[str, float | None]
    problem: str = ""
    held: tuple[Held, ...] = ()
    failed: str = ""


def run_folders(path: Path) -> list[Path]:
    """The run folders in a folder, itself included; no looks of runs, unless it is one or holds nothing else."""
    found = []
    for folder, below, files in os.walk(path):
        below[:] = [name for name in below if name not in _INSIDE and not name.startswith(".")]
        if "config.yaml" in files:
            found.append(Path(folder))
    return sorted(found)


def listed(folder: Path) -> Listed:
    """State and figures of a run folder, which need not exist."""
    if not folder.is_dir():
        return Listed(folder, "not run", {})
    try:
        files = _Files.of(folder)
        manifest, calibration = files.json("manifest.json"), files.json("calibration.json")
        figures = {key: calibration.get(key) for key in ("n", "smece", "smece_low", "smece_high", "excess")}
        held, figures = held_of(folder), figures | _kl(files, manifest)
        at_work = any(not h.dead for h in held)
        state = _state(folder, manifest, calibration, at_work)
        return Listed(folder, state, figures, held=held, failed="" if at_work else failure_of(folder))
    except UserError as error:
        return Listed(folder, "unreadable", {}, str(error))


# ---- state -----------------------------------------------------------------------------------------------------------


def _state(folder: Path, manifest: dict[str, Any], calibration: dict[str, Any], at_work: bool) -> str:
    """`at_work`: whether a process is at work on the run, or on a part of it."""
    if manifest.get("without_texts"):
        return KEPT
    if not manifest.get("shards"):
        return "starting" if at_work else "started"
    failed = ", CHECK FAILED" if any(c["outcome"] == "failed" for c in manifest.get("checks", [])) else ""
    if any(not _is_there(folder, manifest, key) for key in manifest["shards"]):
        share = _saved(folder, manifest) / max(manifest.get("questions", 0), 1)
        return f"{'sampling' if at_work else 'stopped at'} {share:.0%}{failed}"
    if at_work:
        stage = "scoring" if not calibration else "probing or drawing"
        return f"{stage}{failed}"
    if not calibration:
        return f"sampled{failed}"
    analysed = manifest.get("analysed", {})
    if analysed.get("drawn") and (folder / "report.html").is_file():
        return f"finished{failed}"
    return f"{'probed' if newest(folder, 'probes.parquet').is_file() else 'scored'}{failed}"


def _is_there(folder: Path, manifest: dict[str, Any], key: str) -> bool:
    names = [("samples", f"{key}.parquet")]
    names += [("activations", f"{key}.safetensors")] if manifest.get("positions") else []
    return all(newest(folder, *name).is_file() for name in names)


def _saved(folder: Path, manifest: dict[str, Any]) -> int:
    """Number of questions on disk, in finished shards or on the way to one."""
    keys, size = manifest["shards"], manifest.get("shard_size", 0)
    saved = 0
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if _is_there(folder, manifest, key):
            saved += manifest.get("questions", 0) - i * size if last else size
        else:
            saved += partly_answered(folder, key)
    return saved


# ---- figures ---------------------------------------------------------------------------------------------------------


def _kl(files: _Files, manifest: dict[str, Any]) -> dict[str, float | None]:
    """The KL gap of the last layer at the last prompt token, of the linear rung or, for open classes, the bilinear: as
    the manifest of a finished run tells it; from the table of probes where an earlier version of semcal wrote that."""
    if manifest.get("analysed", {}).get("drawn") and "kl_gap" in manifest:
        return {f"kl_{name}": manifest["kl_gap"].get(name) for name in KL}
    last: dict[str, Any] = {}
    if files.path("probes.parquet").is_file() and not _PROBES_OFF.search(files.read("config.yaml")):
        last = _headline_row(files)
    return {f"kl_{name}": _finite(last.get(name)) for name in KL}


def _headline_row(files: _Files) -> dict[str, Any]:
    """See `experiments.compare.probe_rows.last_layer`."""
    import pyarrow
    import pyarrow.parquet as pq

    path, wanted = files.checked("probes.parquet"), ["rung", "target", "position", *KL]
    try:
        with pq.ParquetFile(path) as file:
            if not {*wanted} <= {*file.schema_arrow.names}:  # a version without KL gaps
                return {}
            rows = file.read(columns=wanted, use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); `semcal probe {files.folder}` makes it again") from None
    rows = [row for row in rows if row["target"] == "classes" and row["rung"] in ("linear", "bilinear")]
    if any(row["rung"] == "linear" for row in rows):
        rows = [row for row in rows if row["rung"] == "linear"]
    here = [row for row in rows if row["position"] == "last_prompt_token"]
    return here[-1] if here else {}


@dataclass(frozen=True)
class _Files:
    """The files of a run, each of which is read only if it is as it was written."""

    folder: Path
    digests: dict[str, list[str]]

    @classmethod
    def of(cls, folder: Path) -> _Files:
        return cls(folder, read_digests(newest(folder, DIGESTS)))

    def path(self, name: str) -> Path:
        return newest(self.folder, name)

    def checked(self, name: str) -> Path:
        path, known = self.path(name), self.digests.get(name)
        if known is not None and digest(path) not in known:
            raise changed(path, name, self.folder)
        return path

    def read(self, name: str) -> str:
        return self.checked(name).read_text(encoding="utf-8")

    def json(self, name: str) -> dict[str, Any]:
        """Empty where there is no such file."""
        if not self.path(name).is_file():
            return {}
        try:
            found = json.loads(self.read(name))
        except ValueError as error:
            remedy = f"delete it, and {again(self.folder)} makes it again"
            raise UserError(f"{self.path(name)} cannot be read ({error}); {remedy}") from None
        return found if isinstance(found, dict) else {}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


# ---- as text ---------------------------------------------------------------------------------------------------------

TITLES = ("run", "state", "n", "smECE", "excess", "KL gap")


def rows_of(runs: Sequence[Listed]) -> Iterator[tuple[str, ...]]:
    """The cells of a table, by `TITLES`."""
    for run in runs:
        f = run.figures
        n = f.get("n")
        yield (
            *(str(run.folder), run.state, "—" if n is None else f"{n:,}"),
            _with_interval(f, "smece"),
            "—" if (excess := f.get("excess")) is None else f"{excess:+.3f}",
            _with_interval(f, "kl_gap"),
        )


def at_work(runs: Sequence[Listed]) -> Iterator[str]:
    """A line for each process at work, each one that died over its work, and each failure."""
    alive: dict[str, list[str]] = {}
    for run in runs:
        for held in run.held:
            if not held.dead:
                alive.setdefault(held.by, []).append(f"{run.folder} {held.what}")
    for by, doing in sorted(alive.items()):
        yield f"{by}: {', '.join(doing)}"
    for run in runs:
        for held in run.held:
            if held.dead:
                said = f": {words}" if held.log and (words := last_words(held.log)) else ""
                log = f"; its log: {held.log}{said}" if held.log else ""
                yield f"{run.folder}: {held.by} died over {held.what}, which the next process takes over{log}"
        if run.failed:
            yield f"{run.folder} failed: {run.failed}"


def _with_interval(figures: dict[str, float | None], name: str) -> str:
    value, low, high = (figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "—"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
