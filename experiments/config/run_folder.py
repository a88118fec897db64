"""The run folder of a cell: opened, or refused where it holds a run of another configuration; what differs between
cells in what was sampled, in how it is analysed, and in what is worth comparing."""

from pathlib import Path
from typing import Any

from experiments.config.study import LABELS, Cell, NamedConfig, parse
from semcal.errors import UserError
from semcal.runs.digests import DIGESTS, read_digests
from semcal.runs.files import STAGED
from semcal.runs.run import WITHOUT_TEXTS, Run
from semcal.runs.without_texts import without_folders

STAGES = ("score", "probe")
LOOKS = "looks"  # folder of what was computed beside the results of a run or study
EVIDENCE = Path("docs/results/evidence")  # what was kept of runs without their texts: STUDY/CELL
UNFINISHED = ".probing"  # in a run's folder: what a stopped training left
FACTORS = ("model", "style", "B", "temperature")


def stored_cell(run: Run) -> Cell:
    """The cell that a run's config.yaml holds, wherever the folder is now.

    Raises:
        UserError: a configuration of another version of semcal.
    """
    return parse(Cell, run.config() | {"folder": str(run.folder)}, str(run.folder / "config.yaml"))


def check_folder(cell: Cell) -> Cell | None:
    """The configuration that the cell's folder was started with; None where nothing was sampled. Writes nothing.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    run = Run(Path(cell.folder))
    if run.folder.is_file():
        raise UserError(f"{run.folder} is a file; choose another output folder")
    if not (run.folder / "config.yaml").is_file() or not run.manifest():
        return None
    old = stored_cell(run)
    if difference := first_difference(sampling_part(old), sampling_part(cell)):
        raise UserError(
            f"{run.folder} holds a run of another configuration ({difference}); give this study another name or "
            "output, or delete the folder"
        )
    return old


def open_cell(cell: Cell) -> Run:
    """The run folder of a cell, new or existing. The config.yaml of an existing one follows changed settings of the
    analysis with the results that are made with them.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    run = Run(Path(cell.folder))
    if check_folder(cell) is None:
        run.write_config(cell.model_dump(mode="json"))
    return run


def unfinished(run: Run) -> Path:
    """Where a training that is stopped leaves what it goes on from: in the run's folder. A look of a run that is not
    there yet, and is removed when it is stopped, leaves it in the folder of that run."""
    staged = run.folder.parent
    of = staged.parent.parent if staged.name.startswith(STAGED) and staged.parent.name == LOOKS else run.folder
    return of / UNFINISHED


# ---- runs kept without their texts -----------------------------------------------------------------------------------


def kept_run(folder: Path) -> Run | None:
    """What was kept of a run without its texts; None where nothing was.

    Raises:
        UserError: a file of it is missing.
    """
    if not folder.is_dir():
        return None
    names = ("config.yaml", "calibration.json", DIGESTS, *read_digests(folder / DIGESTS))
    if missing := next((name for name in names if not (folder / name).is_file()), None):
        raise UserError(f"{folder} has lost its {missing}; restore it, or delete the folder and keep the run again")
    return Run(folder)


def check_has_samples(run: Run) -> None:
    """
    Raises:
        UserError: a run that was kept without them.
    """
    if run.manifest().get(WITHOUT_TEXTS):
        raise UserError(
            f"{run.folder} holds what was measured, without samples, activations and texts; this needs the run folder"
        )


def run_of(cell: Cell) -> Run:
    """The scored run of a cell, from its folder or else from EVIDENCE; its folder where it is scored in neither.

    Raises:
        UserError: what was kept is of another configuration, or a file of it is missing.
    """
    run = Run(Path(cell.folder))
    if run.calibration() or (kept := kept_run(EVIDENCE / cell.study / run.name)) is None:
        return run
    old, new = (without_folders(sampling_part(each)) for each in (stored_cell(kept), cell))
    if difference := first_difference(old, new):
        raise UserError(
            f"{kept.folder} is of a run of another configuration ({difference}); give this study another name, or "
            "delete that folder"
        )
    return kept


# ---- what differs between cells --------------------------------------------------------------------------------------


def sampling_part(cell: Cell) -> dict[str, Any]:
    """What the samples and activations depend on: a run folder holds one configuration of these."""
    parts = {"model", "dataset", "style", "seed", "on_long_prompt", "prompting", "capture"}
    whole = cell.model_dump(mode="json", include=parts)
    # Unfinished runs are not continued by another engine (`prepare`); finished ones may be analysed with it.
    for key in ("device", "engine", "python", "served_at", *LABELS):
        whole["model"].pop(key)
    if not cell.model.is_served:  # how a running vLLM is asked changes no answer
        whole["model"].pop("served")
    whole["dataset"].pop("in_distribution")  # a label: no sample depends on it
    if isinstance(cell.dataset, NamedConfig):  # its file may move; the questions are compared by themselves
        whole["dataset"].pop("path")
    sampling = cell.sampling.model_dump(mode="json", exclude={"max_rows", "max_new_tokens", "stop"})
    lengths = {"max_new_tokens": cell.sampling.length(cell.style), "stop": cell.sampling.stop}
    return whole | {"sampling": sampling | lengths}


def analysis_part(cell: Cell, stage: str) -> dict[str, Any]:
    """What the results of a stage ("score" or "probe") depend on, apart from the samples."""
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
        "model": cell.model.model_dump(exclude={"name", "device", "python", "served_at", *LABELS}),
        "style": cell.style,
        "B": cell.semantics.model_dump(exclude={"device", "url", "concurrency", "cache"}),
        "temperature": cell.sampling.temperature,
        "seed": cell.seed,
        **{f"sampling.{key}": value for key, value in sampling.items()},
        **{f"prompting.{key}": value for key, value in cell.prompting.model_dump().items()},
    }
