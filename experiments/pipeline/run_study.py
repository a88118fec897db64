"""Run a study: every cell of the grid that is not finished yet, in an order that loads each model once."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.config.collapsing_functions import check_semantics
from experiments.config.run_folder import analysis_part, open_cell, stored_cell
from experiments.config.study import Cell, ModelConfig, Study, load_dataset
from experiments.pipeline.progress import Reporter
from experiments.pipeline.targets import Target
from experiments.probe.intervene import remeasure
from experiments.probe.probe import probe
from experiments.probe.with_model import check_probes
from experiments.report.pages import write_report, write_study
from experiments.report.summary_table import headline
from experiments.sample.models import Models, model_path
from experiments.sample.sample_cell import prepare, refresh_gold, sample_cell
from experiments.score.score import score
from semcal.errors import UserError
from semcal.models.weights import check_path, weights_fingerprint
from semcal.questions.held_out import TRAINED, touched
from semcal.questions.load_dataset import read_table
from semcal.questions.prompts import exemplars_for
from semcal.questions.question import CONTINUATION, Dataset
from semcal.runs.run import Run, content_key


@dataclass(frozen=True)
class Prepared:
    """A study whose configuration, files and folders have been checked; no model is loaded yet."""

    study: Study
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    datasets: dict[str, Dataset]


def prepare_study(study: Study) -> Prepared:
    """Check everything that needs no model: paths, files, run folders.

    Raises:
        UserError: the first thing that is wrong.
    """
    check_models(study)
    # Set aside for tuned models too, which see no exemplars: base and tuned answer the same questions.
    datasets = {d.name: load_dataset(d, study.prompting.exemplars) for d in study.datasets}
    for name, dataset in datasets.items():
        check_groups(study, name, len({q.group for q in dataset.questions}))
    check_untrained(study, datasets)
    cells = study.cells()
    check_all_semantics(cells, datasets)
    check_shots(cells, datasets)
    runs = [open_cell(c) for c in cells]
    for cell, run in zip(cells, runs, strict=True):
        refresh_gold(run, datasets[cell.dataset.name])
    return Prepared(study, tuple(cells), tuple(runs), datasets)


def check_models(study: Study) -> None:
    """
    Raises:
        UserError: a path that cannot be a checkpoint; probes that its model cannot have.
    """
    for model in (m for m in study.models if not m.is_served):
        check_path(model_path(model), model.revision, allow_pickle=model.allow_pickle, adapter=model.adapter)
        check_probes(study.probes, model)


def check_groups(study: Study, dataset: str, groups: int) -> None:
    """
    Raises:
        UserError: fewer groups of questions than folds.
    """
    if study.probes.enabled and groups < study.probes.folds:
        raise UserError(
            f"{dataset}: {groups} groups of questions cannot be split into {study.probes.folds} folds; ask more, "
            "lower probes.folds or set probes.enabled to false"
        )


def check_untrained(study: Study, datasets: Mapping[str, Dataset]) -> None:
    """
    Raises:
        UserError: a model of `semcal train --from` would be asked what it was trained on.
    """
    for model in (m for m in study.models if not m.is_served):
        file = Path(model_path(model)) / TRAINED
        trained = read_table(file) if file.is_file() else []
        for name, dataset in datasets.items():
            if known := sum(touched(dataset.questions, trained)):
                raise UserError(
                    f"{model.name} was trained on {known} of the {len(dataset.questions)} questions of {name}; add "
                    f"exclude: {file} to the dataset, which leaves these and their groups out"
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


def run_study(prepared: Prepared, reporter: Reporter) -> None:
    """Sample, capture, score, probe, report and track every cell that is not finished."""
    models, rows = Models(), list(zip(prepared.cells, prepared.runs, strict=True))  # rows are sorted by model
    for cell, run in rows:
        if not run.sampled or _other_weights(cell.model, run):
            model = models.of(cell.model)
            job = prepare(cell, run, prepared.datasets[cell.dataset.name], model, prepared.runs)
            reporter.sampling(cell, len(job.asked), len(job.asked) - job.questions_left)
            if job.todo:
                sample_cell(job, model, reporter.answered)
        analyse(cell, run, reporter, models)
        if cell.tracking.wandb != "disabled":
            reporter.stage(cell, "tracking")
            track(cell, run)
        reporter.finished(cell)
    write_study(prepared.study.name, rows, prepared.study.folder)


def analyse(
    cell: Cell, run: Run, reporter: Reporter | None = None, models: Models | None = None, *, again: Sequence[str] = ()
) -> None:
    """Compute what is missing, was made with other settings, or is named in `again` ("score", "probe"); old results
    stay until new ones replace them. `models` lends the run's model where a probe needs it.
    """
    changed, reporter = False, reporter or Reporter()
    if "score" in again or not run.calibration() or not _is_current(cell, run, "score"):
        reporter.stage(cell, "scoring")
        with _recorded(cell, run, "score"):
            score(cell, run, lambda progress: reporter.stage(cell, f"scoring, {progress}"))
        remeasure(cell, run)  # interventions, if there are any
        changed = True
    if cell.probes.enabled and ("probe" in again or run.probes().empty or not _is_current(cell, run, "probe")):
        reporter.stage(cell, "probing")
        with _recorded(cell, run, "probe"):
            probe(cell, run, models)
        changed = True
    if changed or not (run.folder / "report.html").is_file():
        reporter.stage(cell, "drawing")
        write_report(cell, run)


def _is_current(cell: Cell, run: Run, stage: str) -> bool:
    """Whether the results of a stage were made with the settings of now."""
    return run.manifest().get("analysed", {}).get(stage) == content_key(analysis_part(cell, stage))


@contextmanager
def _recorded(cell: Cell, run: Run, stage: str) -> Iterator[None]:
    """Remember which settings the results of a stage were made with; until it ends, they count as out of date."""
    _record(run, stage, None)
    yield
    _record(run, stage, content_key(analysis_part(cell, stage)))


def _record(run: Run, stage: str, key: str | None) -> None:
    manifest = run.manifest()
    run.write_manifest(manifest | {"analysed": manifest.get("analysed", {}) | {stage: key}})


def report_on(target: Target, tell: Callable[[Cell, str], None] = lambda *_: None) -> tuple[Path, list[Path]]:
    """Draw the page of a run; or, of a study or a folder of runs, the page of each run and one page of all.

    Returns:
        The page, and the run folders left out because they have not been scored.

    Raises:
        UserError: no run was scored.
    """
    rows = [(stored_cell(run), run) for run in target.runs if run.calibration()]
    if not rows:
        raise UserError(f"{target.folder}: none of its runs has been scored; `semcal run` its study first")
    for cell, run in rows:
        tell(cell, "drawing")
        write_report(cell, run)
    if not target.is_run:
        write_study(target.folder.resolve().name, rows, target.folder)
    return target.folder / "report.html", [run.folder for run in target.runs if not run.calibration()]


def _other_weights(config: ModelConfig, run: Run) -> bool:
    """Whether a local folder or file holds weights that the run was not made with; a Hub commit cannot change."""
    path = model_path(config)
    if not Path(path).exists():
        return False
    return run.manifest().get("weights_hash") != weights_fingerprint(path, None, adapter=config.adapter)


def track(cell: Cell, run: Run) -> None:
    """Log a run to Weights & Biases: configuration, headline figures, layer table, figures; one W&B run per folder. A
    second call with the same results does nothing.

    Offline runs are in `RUN/wandb`; `wandb sync` sends them.

    Raises:
        UserError: W&B cannot be reached or does not know the user (online only).
    """
    import wandb

    figures = headline(run)
    key = content_key(figures, cell.tracking.model_dump())
    manifest = run.manifest()
    if manifest.get("tracked") == key:
        return
    tracking_id = manifest.get("tracking_id") or secrets.token_hex(4)
    manifest = manifest | {"tracking_id": tracking_id}
    run.write_manifest(manifest)
    try:
        tracked = wandb.init(
            id=tracking_id,
            resume="allow",
            project=cell.tracking.project,
            entity=cell.tracking.entity,
            group=cell.study,
            name=run.name,
            config=cell.model_dump(mode="json"),
            dir=str(run.folder),
            mode=cell.tracking.wandb,
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        )
    except wandb.Error as error:
        raise UserError(f"W&B: {error}; set tracking.wandb to offline, or run `wandb login`") from error
    with tracked:
        tracked.summary.update({k: v for k, v in figures.items() if v is not None})
        probes = run.probes()
        if not probes.empty:
            tracked.log({"probes": wandb.Table(dataframe=probes)})
        for picture in sorted((run.folder / "figures").glob("*.png")):
            tracked.log({f"figures/{picture.stem}": wandb.Image(str(picture))})
    run.write_manifest(manifest | {"tracked": key})
