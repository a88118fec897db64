"""One run of W&B. Whatever fails in it costs no result: it is said in one line, and what was logged stays on disk."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from experiments.config.study import TrackingConfig

if TYPE_CHECKING:  # it takes a second
    import wandb

log = logging.getLogger(__name__)

JobType = Literal["sample", "score", "probe", "compare", "verdict", "train"]
INIT_S, FINISH_S = 30.0, 60.0  # how long W&B may take to open and to close a run
STOPPED_S = 3.0  # the same where a signal ends the process
LONGEST_TAG = 64  # W&B refuses longer ones


@dataclass(frozen=True)
class About:
    """What a run of W&B is.

    Attributes:
        id: Of 8 hexadecimal digits; the same one goes on with the same run.
        first_step: Number of the first line of its history, above those that were logged before.
    """

    id: str
    name: str
    job_type: JobType
    group: str
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    first_step: int = 0


class Session:
    """An open run of W&B, or none: then nothing happens. Where the server fails in the middle, its record goes on
    offline, in a file of its own that is synced to the same run.

    Args:
        reopen: Opens the same run offline.

    Attributes:
        step: Number of the next line of its history.
    """

    def __init__(self, run: wandb.Run | None, step: int = 0, reopen: Callable[[], wandb.Run] | None = None) -> None:
        self._run, self._reopen = run, reopen
        self.step = step if run is None else max(step, run.step)

    @property
    def is_open(self) -> bool:
        return self._run is not None

    @property
    def place(self) -> tuple[str, str] | None:
        """Entity and project of a run that is online."""
        run = self._run
        return None if run is None or run.offline else (run.entity, run.project)

    def log(self, row: Mapping[str, Any]) -> None:
        """A line of history: everything in it belongs together."""
        self._attempt(lambda run: run.log(dict(row), step=self.step, commit=True))
        self.step += 1

    def summarise(self, figures: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.summary.update(dict(figures)))

    def configure(self, config: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.config.update(dict(config), allow_val_change=True))

    def tag(self, tags: Sequence[str]) -> None:
        def set_tags(run: wandb.Run) -> None:
            run.tags = fitting(tags)

        self._attempt(set_tags)

    def by(self, pattern: str, step: str) -> None:
        """Draw the metrics of a pattern such as probe/* over another metric, not over the number of the line."""
        self._attempt(lambda run: (run.define_metric(step), run.define_metric(pattern, step_metric=step)))

    def reads(self, artifact: wandb.Artifact) -> None:
        """An input of this run: a version of its own only if its content is new."""
        # `Run.use_artifact` refuses offline mode, and online it waits for the server; this is what it calls.
        how = {"aliases": [], "is_user_created": True, "use_after_commit": True}
        self._attempt(lambda run: run._log_artifact(artifact, **how))

    def writes(self, artifact: wandb.Artifact) -> None:
        """An output of this run; as `reads`."""
        self._attempt(lambda run: run.log_artifact(artifact))

    def close(self, exit_code: int = 0, patience: float | None = None) -> None:
        """Close the run; within `patience` seconds, if they are given, even where W&B is not done, and silently."""
        run, self._run = self._run, None
        if run is None:
            return
        if patience is None:
            if problem := _finish(run, exit_code):
                log.warning("W&B: %s; what was not sent is in %s", problem, run.settings.sync_dir)
            return
        finishing = Thread(target=_finish, args=(run, exit_code), daemon=True)
        finishing.start()
        finishing.join(patience)

    def _attempt(self, do: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            do(self._run)
        except Exception as error:
            again = self._reopen if not self._run.offline else None
            log.warning("W&B: %s; the study goes on%s", one_line(error), ", and is logged offline" if again else "")
            self.close(exit_code=1, patience=STOPPED_S)
            if again is not None:
                self._reopen, self._run = None, _attempted(again)
                self._attempt(do)


def _finish(run: wandb.Run, exit_code: int) -> str:
    """Close a run, and mark its record as sent if it was; returns what went wrong."""
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:
        return one_line(error)
    if run.offline:
        return ""
    # W&B says nowhere else that a server refused what it was sent.
    if '"level":"ERROR' in Path(run.settings.log_internal).read_text(encoding="utf-8", errors="replace"):
        return "the server did not take everything"
    _synced(Path(run.settings.sync_file)).touch()
    return ""


def _attempted(open_run: Callable[[], wandb.Run]) -> wandb.Run | None:
    try:
        return open_run()
    except Exception as error:
        log.warning("W&B: %s; the study goes on, and nothing is logged", one_line(error))
        return None


def open_session(tracking: TrackingConfig, about: About, folder: Path) -> Session:
    """A run of W&B whose record is in `folder/wandb`. Where it cannot be opened online, its record waits to be synced;
    where it cannot be opened at all, nothing is logged. Both are said in one line."""

    def offline() -> wandb.Run:
        return _opened(tracking, about, folder, "offline")

    def after_failure() -> wandb.Run:
        _forget(about.id, folder)
        return offline()

    if tracking.wandb == "online":
        try:
            _check_login()
            return Session(_opened(tracking, about, folder, "online"), about.first_step, after_failure)
        except Exception as error:
            log.warning("W&B: %s; logging offline", one_line(error))
            _forget(about.id, folder)
    return Session(_attempted(offline), about.first_step)


def _forget(run_id: str, folder: Path) -> None:
    """Let go of a run that could not be opened: its process of W&B would refuse the same id offline."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)
    newest = max((folder / "wandb").glob(f"run-*-{run_id}"), default=None)
    if newest is not None and not any((newest / "files").glob("*")):  # else an earlier one, with what it logged
        shutil.rmtree(newest, ignore_errors=True)


def _check_login() -> None:
    """
    Raises:
        UsageError: there is no key, and `wandb.init` would ask for one in the middle of a study.
    """
    import wandb
    from wandb.errors import UsageError
    from wandb.sdk.lib import wbauth

    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    if wbauth.authenticate_session(host=host, source="semcal", prompt=False) is None:
        raise UsageError("not logged in, `wandb login` does so")


def _opened(tracking: TrackingConfig, about: About, folder: Path, mode: Literal["online", "offline"]) -> wandb.Run:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    # An agent of a sweep says which project and run these are.
    place = {} if is_swept() else {"id": about.id, "project": tracking.project, "entity": tracking.entity}
    return wandb.init(
        **place,
        resume="allow",
        group=about.group,
        name=about.name,
        job_type=about.job_type,
        tags=fitting(about.tags),
        config=dict(about.config),
        allow_val_change=True,
        dir=str(folder),
        mode=mode,
        reinit="create_new",  # a notebook may have a run of its own
        settings=wandb.Settings(
            silent=True,
            console="off",
            x_disable_meta=True,
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
        ),
    )


def is_swept() -> bool:
    """Whether an agent of a W&B sweep started this process."""
    import wandb

    return bool(wandb.setup().settings.sweep_id)


def fitting(tags: Sequence[str]) -> tuple[str, ...]:
    """Each tag once, cut to what W&B takes."""
    return tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")


# ---- what waits to be synced -----------------------------------------------------------------------------------------


def sync_line(folders: Iterable[Path]) -> str:
    """The command that sends what is not on the server yet of the runs recorded in `FOLDER/wandb`; "" for nothing."""
    waiting = [record for folder in folders for record in sorted((folder / "wandb").glob("*run-*/run-*.wandb"))]
    waiting = [record for record in waiting if not _synced(record).exists()]
    if not waiting:
        return ""
    online = any(record.parent.name.startswith("run-") for record in waiting)
    places = dict.fromkeys(str(record.parent.parent) for record in waiting)
    return shlex.join(["wandb", "sync", *(["--include-online"] if online else []), *places])


def _synced(record: Path) -> Path:
    """The mark by which `wandb sync` passes over a record."""
    return record.with_suffix(".wandb.synced")
