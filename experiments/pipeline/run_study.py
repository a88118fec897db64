"""Run a study: every cell of the grid that is not finished yet, in an order that loads each model once."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import AutoConfig

from experiments.cluster.share import Share, groups
from experiments.config.collapsing_functions import check_semantics
from experiments.config.run_folder import analysis_part, open_cell, stored_cell
from experiments.config.study import Cell, ModelConfig, NamedConfig, Study, TableConfig, load_dataset
from experiments.pipeline.looks import study_folder
from experiments.pipeline.progress import Reporter
from experiments.pipeline.signals import Stopped
from experiments.pipeline.targets import Target
from experiments.pipeline.tracking.tracker import tracking
from experiments.probe.intervene import remeasure
from experiments.probe.probe import probe
from experiments.probe.with_model import check_probes
from experiments.report.pages import started, write_report, write_study
from experiments.report.summary_table import headline
from experiments.sample.models import Models, check_weights_reachable, model_path, trained_files
from experiments.sample.sample_cell import sample_cell
from experiments.sample.sampling_job import gold_key, prepare, refresh_gold, saved
from experiments.score.score import score
from experiments.terminal.run_list import KL
from probes.evaluation.folds import too_few_groups
from semcal.errors import UserError
from semcal.models.formats.adapters import parts_of
from semcal.models.weights import changed, check_path, computation, weights_fingerprint
from semcal.questions.held_out import touched
from semcal.questions.load_dataset import read_table
from semcal.questions.pool import pool
from semcal.questions.prompts import exemplars_for
from semcal.questions.question import CONTINUATION, Dataset
from semcal.runs.claims import claimed, holder, part
from semcal.runs.failure import clear_failure, write_failure
from semcal.runs.files import sweep
from semcal.runs.made_by import again
from semcal.runs.run import Run, content_key
from semcal.sampling.vllm.interpreter import vllm_python

WAIT_S = 2.0  # where all that is left is in the hands of other processes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A study whose configuration, files and folders have been checked; no model is loaded yet."""

    study: Study
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    datasets: dict[str, Dataset]

    @cached_property
    def groups(self) -> list[int]:
        """For each cell the number of its group: cells of a group share their samples."""
        return groups(self.cells)


def prepare_study(study: Study) -> Prepared:
    """Check everything that needs no model: paths, files, run folders.

    Raises:
        UserError: the first thing that is wrong.
    """
    check_models(study)
    # Set aside for tuned models too, which see no exemplars: base and tuned answer the same questions.
    datasets = {d.name: load_dataset(d, study.prompting) for d in study.datasets}
    for name, dataset in datasets.items():
        warn_of_groups(study, name, len({q.group for q in dataset.questions}))
    warn_of_exemplars(study, datasets.values())
    check_untrained(study, datasets)
    cells = study.cells()
    check_all_semantics(cells, datasets)
    check_shots(cells, datasets)
    needed = {c.model.name: c.model for c in cells if not c.model.is_served and not Run(Path(c.folder)).sampled}
    for model in needed.values():
        check_weights_reachable(model)
    runs = [open_cell(c) for c in cells]
    keys = {name: gold_key(dataset) for name, dataset in datasets.items()}
    for cell, run in zip(cells, runs, strict=True):
        refresh_gold(run, datasets[cell.dataset.name], keys[cell.dataset.name])
    return Prepared(study, tuple(cells), tuple(runs), datasets)


def check_models(study: Study) -> None:
    """
    Raises:
        UserError: a path that cannot be a checkpoint; probes that its model cannot have.
    """
    for model in (m for m in study.models if not m.is_served):
        check_path(model_path(model), model.revision, allow_pickle=model.allow_pickle, adapter=model.adapter)
        check_probes(study.probes, model)
        if model.engine == "vllm" and model.served_at is None:
            vllm_python(model.python)


def warn_of_groups(study: Study, dataset: str, groups: int) -> None:
    """Say before sampling that there are too few groups of questions to probe."""
    if study.probes.enabled and (reason := too_few_groups(groups, study.probes.folds)):
        log.warning("%s: probes will not be computed: %s", dataset, reason)


def warn_of_exemplars(study: Study, datasets: Iterable[Dataset]) -> None:
    """Say that a number of exemplars that the study sets has no effect where they are those of the pool."""
    few_shot = any(model.prompt == "few-shot" for model in study.models) and study.prompting.shots > 0
    for dataset in datasets if few_shot and "exemplars" in study.prompting.model_fields_set else ():
        if dataset.exemplars and dataset.exemplars[0] in pool():
            log.warning(
                "%s: prompting.exemplars has no effect: its questions have no worked solutions, so prompts show "
                "exemplars of the project's pool; leave it out, or give the questions `worked`",
                dataset.name,
            )


def check_untrained(study: Study, datasets: Mapping[str, Dataset]) -> None:
    """
    Raises:
        UserError: a model of `semcal train --from` or `semcal tilt` would be asked what it was trained on.
    """
    excluding = {d.name for d in study.datasets if isinstance(d, NamedConfig | TableConfig)}
    for model in (m for m in study.models if not m.is_served):
        for file in trained_files(model_path(model), model.revision, model.adapter):
            trained = read_table(file)
            for name, dataset in datasets.items():
                if known := sum(touched(dataset.questions, trained)):
                    remedy = f"add exclude: {file} to the dataset, which leaves these and their groups out"
                    raise UserError(
                        f"{model.name} was trained on {known} of the {len(dataset.questions)} questions of {name}; "
                        + (remedy if name in excluding else f"ask it a dataset without those in {file}")
                    )


def check_shots(cells: Sequence[Cell], datasets: Mapping[str, Dataset]) -> None:
    """
    Raises:
        UserError: more shots than a dataset, or the pool in its place, has exemplars in a style.
    """
    for cell in (c for c in cells if c.model.prompt == "few-shot" and c.style != CONTINUATION):
        exemplars, shots = exemplars_for(datasets[cell.dataset.name], cell.style), cell.prompting.shots
        if shots > len(exemplars):
            raise UserError(
                f"{cell.label}: prompting.shots is {shots}, but there are only {len(exemplars)} exemplars; lower shots"
            )


def check_all_semantics(cells: Sequence[Cell], datasets: Mapping[str, Dataset]) -> None:
    """
    Raises:
        UserError: a B that cannot read the gold of one of these datasets; see `check_semantics`.
    """
    for cell in {(c.dataset.name, c.style, c.semantics.label): c for c in cells}.values():
        if cell.dataset.name in datasets:
            check_semantics(cell.semantics, datasets[cell.dataset.name], cell.style)


def run_study(prepared: Prepared, reporter: Reporter, share: Share | None = None) -> None:
    """Sample, capture, score, probe, report and track every cell that is not finished.

    Several processes that run one study share its work: each samples the shards that no other one holds, whichever
    finds a cell whole analyses it, and all end when everything is done. A job with a share only samples it; then
    `merge_study` does the rest.

    Raises:
        UserError: whatever a stage cannot go on with.
    """
    models, rows = Models(), list(zip(prepared.cells, prepared.runs, strict=True))  # rows are sorted by model
    sweep(prepared.study.folder)
    with tracking([] if share else prepared.cells, reporter) as reporter:
        left = list(range(len(rows)))
        while left:
            held = [n for n in left if not _run_cell(prepared, n, models, reporter, share or Share(0, 1))]
            if len(held) == len(left):
                time.sleep(WAIT_S)
            left = held
    if share is None:
        write_study(prepared.study.name, rows, prepared.study.folder)
        sweep(prepared.study.folder)  # what others left that were killed in the meantime


def merge_study(prepared: Prepared, reporter: Reporter) -> None:
    """Analyse the cells whose shards are all there, as the jobs of an array left them, and write the study's page.

    Raises:
        UserError: shards are missing, after everything else is done; whatever a stage cannot go on with.
    """
    models, rows = Models(), list(zip(prepared.cells, prepared.runs, strict=True))
    whole = [number for number, (_, run) in enumerate(rows) if run.sampled]
    with tracking([prepared.cells[number] for number in whole], reporter) as reporter:
        for number in whole:
            while not _run_cell(prepared, number, models, reporter, Share(0, 1)):
                time.sleep(WAIT_S)
    if whole:
        write_study(prepared.study.name, [rows[number] for number in whole], prepared.study.folder)
    if missing := [_missing(cell, run) for cell, run in rows if not run.sampled]:
        more = f", and {len(missing) - 3} more cells" if len(missing) > 3 else ""
        raise UserError(
            f"{prepared.study.name}: not all is sampled: {'; '.join(missing[:3])}{more}; run the jobs that sample them "
            f"again, or {again(prepared.runs[0].folder)}"
        )


def _missing(cell: Cell, run: Run) -> str:
    if not (keys := run.shard_keys()):
        return f"{cell.label} was not begun"
    missing = run.missing_shards()
    by = _held_by(run, missing)
    return f"{cell.label} lacks {len(missing)} of {len(keys)} shards" + (f", sampled by {by}" if by else "")


def _run_cell(prepared: Prepared, number: int, models: Models, reporter: Reporter, share: Share) -> bool:
    """Do of a cell what is in this share and no other process is at work on; returns whether nothing of it is left."""
    cell, run, group = prepared.cells[number], prepared.runs[number], prepared.groups[number]
    first = prepared.groups.index(group)

    def missing(run: Run) -> list[str]:
        return [key for key in run.missing_shards() if share.holds(group, key)]

    def is_there(run: Run) -> bool:
        return bool(run.shard_keys()) and not missing(run)

    with _saying_what_is_there(cell, run):
        run.tidy()
        if by := _held_by(run, missing(run)):
            reporter.left(cell, f"sampled by {by}")
            return False
        if first != number and not run.sampled and not is_there(prepared.runs[first]):
            reporter.left(cell, f"waits for the samples of {prepared.cells[first].label}")
            return False
        if not run.sampled or other_weights(cell.model, run):
            if not models.holds(cell.model):
                reporter.stage(cell, f"loading {cell.model.name}")
            model = models.of(cell.model)
            job = prepare(cell, run, prepared.datasets[cell.dataset.name], model, prepared.runs)
            job = replace(job, todo=tuple(key for key in job.todo if share.holds(group, key)))
            reporter.sampling(cell, len(job.asked), len(job.asked) - job.questions_left)
            if job.todo:
                sample_cell(job, model, reporter.answered)
            if missing(run):
                return False
        if share.of == 1 and not finish_cell(cell, run, models, reporter):
            return False
        reporter.finished(cell)
    return True


def finish_cell(cell: Cell, run: Run, models: Models, reporter: Reporter) -> bool:
    """Analyse a cell that is sampled; returns whether no other process is at it."""
    with claimed(run.folder) as ours:
        if not ours:
            reporter.left(cell, f"analysed by {holder(run.folder)}")
            return False
        analyse(cell, run, reporter, models)
    return True


def _held_by(run: Run, shards: Iterable[str]) -> str:
    """Who is at work on these shards of a run, if others are on all of them; else ""."""
    by = ""
    for key in shards:
        with claimed(run.folder, part(key)) as free:
            if free:
                return ""
        by = holder(run.folder, part(key))
    return by


@contextmanager
def _saying_what_is_there(cell: Cell, run: Run) -> Iterator[None]:
    """Say what is saved to whoever stops the block; and of what it fails to whoever looks at the run."""
    clear_failure(run.folder)
    try:
        yield
    except Stopped as stopped:
        stopped.saved = f"{cell.label}: {saved(run)}"
        raise
    except Exception as error:
        write_failure(run.folder, str(error) or type(error).__name__)
        raise


def analyse(
    cell: Cell, run: Run, reporter: Reporter | None = None, models: Models | None = None, *, again: Sequence[str] = ()
) -> None:
    """Compute what is missing, was made with other settings, or is named in `again` ("score", "probe").

    The results of a stage replace the old ones together, once all are there. `models` lends the run's model where a
    probe needs it.
    """
    reporter = reporter or Reporter()
    if "score" in again or not run.calibration() or not _is_current(cell, run, "score"):
        reporter.stage(cell, "scoring")
        with run.replacing() as new:
            score(cell, new, lambda progress: reporter.stage(cell, f"scoring, {progress}"))
            remeasure(cell, new)  # interventions, if there are any
            _record(cell, new, "score")
    if not why_not_probed(cell, run) and (
        "probe" in again or not run.holds_probes or not _is_current(cell, run, "probe")
    ):
        reporter.stage(cell, "probing")
        with run.replacing() as new:
            probe(cell, new, models, lambda words: reporter.stage(cell, words))
            _record(cell, new, "probe")
    if stored_cell(run) != cell:  # labels, or that no probes are shown
        run.write_config(cell.model_dump(mode="json"))
        manifest = run.manifest()
        run.write_manifest(manifest | {"analysed": manifest["analysed"] | {"drawn": False}})
    if not run.manifest()["analysed"].get("drawn") or not (run.folder / "report.html").is_file():
        reporter.stage(cell, "drawing")
        write_report(cell, run)
        manifest, figures = run.manifest(), headline(run)
        kl_gap = {name: figures[f"kl_{name}"] for name in KL}  # for `semcal ls`, which reads no table
        run.write_manifest(manifest | {"analysed": manifest["analysed"] | {"drawn": True}, "kl_gap": kl_gap})


def why_not_probed(cell: Cell, run: Run) -> str:
    """Why a run has no probes, and what to do; "" where it is to have some."""
    if not cell.probes.enabled:
        return f"{run.folder}: probes.enabled is false; set it to true in the study, then {again(run.folder)}"
    reason = too_few_groups(len(set(run.questions()["group"])), cell.probes.folds)
    return reason and f"{run.folder}: {reason}"


def _is_current(cell: Cell, run: Run, stage: str) -> bool:
    """Whether the results of a stage were made with the settings of now."""
    return run.manifest().get("analysed", {}).get(stage) == content_key(analysis_part(cell, stage))


def _record(cell: Cell, new: Run, stage: str) -> None:
    """Write beside new results which settings they were made with."""
    manifest, done = new.manifest(), {stage: content_key(analysis_part(cell, stage)), "drawn": False}
    new.write_manifest(manifest | {"analysed": manifest.get("analysed", {}) | done})
    settings = cell.model_dump(mode="json")
    if stage == "score":  # those of the probes that are there stay until new probes are
        settings = new.config() | {key: settings[key] for key in ("semantics", "calibration")}
    new.write_config(settings)


def report_on(
    target: Target,
    overrides: Sequence[str] = (),
    tell: Callable[[Cell, str], None] = lambda *_: None,
    width: float | None = None,
) -> tuple[Path, list[Path]]:
    """Draw the page of a run; or, of a study or a folder of runs, the page of each run and one page of all. A run that
    is not finished gets a page of what there is.

    Args:
        overrides: what was set of the study; see `study_folder`.
        width: of the figures, inches; None for their own.

    Returns:
        The page, and the run folders whose figures are left out because they have not been scored.

    Raises:
        UserError: no run was started.
    """
    rows = [(stored_cell(run), run) for run in target.runs if run.calibration()]
    unfinished = [(stored_cell(run), run) for run in target.runs if not run.calibration() and started(run)]
    into = target.folder if target.study is None else study_folder(target.study, overrides)
    if not rows + unfinished:
        raise UserError(f"{target.folder}: none of its runs has been scored; {again(target.runs[0].folder)} first")
    for cell, run in rows + unfinished:
        tell(cell, "drawing")
        write_report(cell, run, width)
    if target.is_run:
        return into / "report.html", []
    write_study(target.folder.resolve().name, rows, into, width, unfinished)
    return into / "report.html", [run.folder for run in target.runs if not run.calibration()]


def other_weights(config: ModelConfig, run: Run) -> bool:
    """Whether a local folder or file holds weights, or settings of the model, that the run was not made with; a Hub
    commit cannot change."""
    path, manifest = model_path(config), run.manifest()
    if not Path(path).exists():
        return False
    if manifest.get("weights_hash") != weights_fingerprint(path, None, adapter=config.adapter):
        return True
    weights = parts_of(path, None, config.adapter).weights
    if not Path(weights).is_dir() or not manifest.get("computation"):
        return False
    now = AutoConfig.from_pretrained(weights, trust_remote_code=config.trust_remote_code)
    return bool(changed(manifest["computation"], computation(now)))
