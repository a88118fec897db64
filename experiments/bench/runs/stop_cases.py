"""Stops at random moments in a run of a real model: how many seconds of sampling each loses, and how long a stop takes.

Half of the stops are `kill -9`, half SIGTERM. What is lost is the time since the last portion reached the disk;
beside it, what would be lost if only whole shards did.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from experiments.config.study import Cell, load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.pipeline.signals import Stopped, stopping
from experiments.sample.real_models import PREFIX, real_model
from semcal.errors import UserError
from semcal.runs.run import Run

MODEL, STOPS, SEED = "gemma-3-270m", 10, 0
EARLIEST_S, LATEST_S = 10.0, 150.0  # after sampling began
MOST_LOST_S, SLOWEST_EXIT_S = 120.0, 10.0


@dataclass(frozen=True)
class Stop:
    """One stop.

    Attributes:
        case: Its number and signal.
        lost_s: Seconds of sampling since the last portion reached the disk.
        by_shards_s: Seconds of sampling since the last shard did, or since this attempt began.
        exit_s: From the signal to the end of the process.
        saved: Number of questions on disk afterwards.
    """

    case: str
    lost_s: float
    by_shards_s: float
    exit_s: float
    saved: int

    @property
    def holds(self) -> bool:
        return self.lost_s <= MOST_LOST_S and self.exit_s <= SLOWEST_EXIT_S

    @property
    def line(self) -> str:
        return f"{self.case}: {self.lost_s:.1f} s of sampling lost, out after {self.exit_s:.1f} s, {self.saved} saved"

    def to_dict(self) -> dict[str, object]:
        return {
            "case": self.case,
            "ours_s": self.lost_s,
            "theirs_s": self.by_shards_s,
            "ratio": self.by_shards_s / max(self.lost_s, 1e-3),
            "exit_s": self.exit_s,
            "saved": self.saved,
            "holds": self.holds,
        }


def stop_cases(device: str = "auto") -> Iterator[Stop]:
    """Ten stops in one run of a real model on TriviaQA; none, with a line on stderr, where the model is absent."""
    try:
        real_model(MODEL)
    except UserError as error:
        Console(stderr=True).print(f"left out: {error}", highlight=False, soft_wrap=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "stops.yaml"
        study.write_text(yaml.safe_dump(_study(folder, device)))
        chance = random.Random(SEED)
        for number in range(STOPS):
            how = signal.SIGKILL if number % 2 == 0 else signal.SIGTERM
            yield stop(study, number, how, chance.uniform(EARLIEST_S, LATEST_S))


def _study(output: str, device: str) -> dict[str, object]:
    return {
        "name": "stops",
        "models": [{"path": f"{PREFIX}{MODEL}", "name": MODEL, "device": device}],
        "datasets": [{"kind": "triviaqa", "n": 2000}],
        "styles": ["concise"],
        "prompting": {"shots": 5},
        "sampling": {"m": 50, "max_new_tokens": 160},
        "probes": {"enabled": False},
        "output": output,
    }


def stop(study: Path, number: int, how: signal.Signals, after_s: float) -> Stop:
    """Start or continue the run of a study, and stop it so many seconds after it began to sample.

    Raises:
        RuntimeError: the run ended before that.
    """
    began = study.with_suffix(".began")
    began.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.bench.runs.stop_cases", str(study)], stderr=subprocess.PIPE
    )
    while not began.is_file():
        _check_alive(process)
        time.sleep(0.1)
    started = began.stat().st_mtime
    while time.time() < started + after_s:
        _check_alive(process)
        time.sleep(0.1)
    stopped = time.time()
    process.send_signal(how)
    process.communicate()
    exit_s = time.time() - stopped
    (folder,) = (path.parent for path in study.parent.glob("stops/*/manifest.json"))
    portions, shards = (_last_change(folder / "samples", ending) for ending in ("jsonl", "parquet"))
    return Stop(
        case=f"stop {number + 1}, {how.name}, {after_s:.0f} s after sampling began",
        lost_s=max(0.0, stopped - max(started, portions, shards)),
        by_shards_s=stopped - max(started, shards),
        exit_s=exit_s,
        saved=Run(folder).questions_saved(),
    )


def _last_change(folder: Path, ending: str) -> float:
    return max((path.stat().st_mtime for path in folder.glob(f"*.{ending}")), default=0.0)


def _check_alive(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        said = process.communicate()[1].decode(errors="replace").strip()
        raise RuntimeError(f"the run ended with code {process.returncode} before it was stopped: {said[-500:]}")


class _Began(Reporter):
    """Leaves a file when sampling begins."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def sampling(self, cell: Cell, questions: int, done: int) -> None:  # noqa: ARG002
        self.file.touch()


def _run(study: Path) -> None:
    with stopping():
        try:
            run_study(prepare_study(load_study(study)), _Began(study.with_suffix(".began")))
        except Stopped as stopped:
            raise SystemExit(stopped.code) from None


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
