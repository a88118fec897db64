"""Commands on a study before and while it runs: init, run, merge, prompts, doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.terminal.arguments import Sets, Studies, loaded
from experiments.terminal.headline_figures import print_summary, run_records
from experiments.terminal.output import complaints, output
from semcal.errors import UserError

if TYPE_CHECKING:
    from experiments.config.study import Study
    from experiments.pipeline.run_study import Prepared


def init(
    name: Annotated[str, typer.Argument(help="Of the study, and of the file NAME.yaml.")] = "my-study",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a study, for editors, and write nothing.")
    ] = False,
) -> None:
    """Write a study file to start from, in which every key is explained, and beside it a JSON schema by which editors
    complete keys and mark mistakes. Small as it is, it runs on a bundled model within minutes."""
    from experiments.config.study_template import SCHEMA, json_schema, schema_text, template

    if schema:
        output().record(**json_schema())
        output().verbatim(schema_text())
        return
    file = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if file.exists():
        raise UserError(f"{file} is there already, and stays as it is; choose another name: `semcal init NAME`")
    beside = file.with_name(SCHEMA)
    text = template(file.stem)
    from semcal.runs.files import write_atomically

    write_atomically(beside, lambda path: path.write_text(schema_text(), encoding="utf-8"))
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    from experiments.terminal.named_paths import pasted

    output().written([file, beside])
    output().hint(pasted("run", file, "--dry-run"), pasted("run", file))


def run(
    studies: Studies,
    set: Sets = None,
    model: Annotated[
        str | None,
        typer.Option(help="Ask this model a table of questions; writes runs/NAME/study.yaml."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell; count tokens and memory.")] = False,
    slurm: Annotated[
        str | None, typer.Option(help="Submit jobs to Slurm and follow them: partition=gpu,gpus=1,time=4:00:00.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="With --slurm: how many jobs share the study.")] = 8,
    ray: Annotated[
        str | None, typer.Option(help="Let actors of Ray share the study: HOST:PORT of a cluster, or local.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Only sample the share i/n, i from 0 to n-1, or auto: of a Slurm array or torchrun."),
    ] = None,
) -> None:
    """Run every cell of a study that is not finished yet; print a summary, write figures and pages. Several processes
    that run one study share its work."""
    from experiments.cluster.share import share_of

    share = None if shard is None else share_of(shard, os.environ)
    if sum(way is not None for way in (slurm, ray, share)) > 1:
        raise UserError("--slurm, --ray and --shard each share the work in a way of their own; name one")
    if dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported; a dry run must not wait for a network
    found = loaded(studies, set, model)
    from experiments.verdict.testable import untestable

    for _, study in found:
        for note in untestable(study):
            output().tell(f"{study.name}: {note}", style="yellow")
    if dry_run:
        _plan([study for _, study in found])
        return
    from experiments.cluster.run_on_slurm import run_on_slurm, submitted_file
    from experiments.pipeline.forecast import Forecast
    from experiments.pipeline.run_study import prepare_study, run_study
    from experiments.terminal.named_paths import pasted
    from semcal.runs.made_by import write_command

    for path, prepared in [(path, prepare_study(study)) for path, study in found]:
        for dataset in prepared.datasets.values():
            output().tell(dataset.summary)
        if path.resolve() != submitted_file(prepared.study):  # by which a job of Slurm runs it
            write_command(prepared.study.folder, pasted("run", path, *_sets(set)))
        if slurm is not None:
            run_on_slurm(prepared, slurm, jobs, complaints)
        elif ray is not None:
            from experiments.cluster.on_ray.ray_study import run_on_ray
            from experiments.pipeline.progress import Reporter

            shown = None if output().quiet else complaints
            run_on_ray(prepared, Reporter(), None if ray == "local" else ray, console=shown)
        else:
            with output().screen(len(prepared.cells)) as screen:
                run_study(prepared, Forecast(prepared.study, screen, output().tell), share)
        if share is not None:
            output().say(f"share {share} of {prepared.study.name} is sampled")
            output().hint(pasted("merge", path, *_sets(set)))
            continue
        _summary(prepared)
        rows, folder = prepared.cells, prepared.study.folder
        if any(model.stage for model in prepared.study.models):
            output().hint(pasted("verdict", path, *_sets(set)))
        if len({cell.dataset.name for cell in rows}) < len(rows):  # some share their questions
            output().hint(pasted("compare", folder))


def _sets(overrides: list[str] | None) -> list[str]:
    return [part for one in overrides or [] for part in ("--set", one)]


def merge(studies: Studies, set: Sets = None) -> None:
    """Analyse what the jobs of an array sampled (`semcal run --shard`), once it is all there, and write the study's
    page."""
    from experiments.pipeline.run_study import merge_study, prepare_study

    for _, study in loaded(studies, set):
        prepared = prepare_study(study)
        with output().screen(len(prepared.cells)) as screen:
            merge_study(prepared, screen)
        _summary(prepared)


def _summary(prepared: Prepared) -> None:
    rows = list(zip(prepared.cells, prepared.runs, strict=True))
    print_summary(rows)
    folder = prepared.study.folder
    output().append("studies", {"study": prepared.study.name, "folder": folder, "runs": run_records(rows)})
    output().say(f"runs, figures and report.html: {folder}")
    output().unsynced(run.folder for run in prepared.runs)


def _plan(studies: list[Study]) -> None:
    from experiments.pipeline.dry_run import dry_run
    from experiments.pipeline.dry_run_table import plan_data, plan_notes, plan_table

    plans = []
    for study in studies:
        planned = dry_run(study)
        output().show(plan_table(planned))
        for note in plan_notes(planned):
            output().explain(f"· {note}")
        plans.append(plan_data(planned))
    output().record(**(plans[0] if len(plans) == 1 else {"studies": plans}))


def prompts(
    studies: Studies,
    set: Sets = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Questions per cell.")] = 2,
) -> None:
    """Show what each model will read: a few prompts per cell, with special tokens and token counts."""
    found = loaded(studies, set)
    from experiments.config.study import load_dataset
    from experiments.sample.asked import look
    from experiments.sample.models import model_to_look_at

    for _, study in found:
        datasets = {d.name: load_dataset(d, study.prompting) for d in study.datasets}
        models = {m.name: model_to_look_at(m) for m in study.models}
        for cell in {(c.model.name, c.dataset.name, c.style): c for c in study.cells()}.values():
            named: dict[str, Any] = {"model": cell.model.name, "dataset": cell.dataset.name, "style": cell.style}
            output().rule(" · ".join(named.values()))
            for shown in look(cell, datasets[cell.dataset.name], models[cell.model.name], n):
                facts, _, text = shown.partition("\n")
                output().say(facts, style="bold")
                output().say(f"{text}▌\n")
                output().append("prompts", named | {"facts": facts, "prompt": text})


def doctor(
    model: Annotated[str, typer.Argument(help="Folder, Hub id, or atlas:base.")],
    dataset: Annotated[
        str | None, typer.Argument(help="A named dataset or a file of questions; default: general knowledge.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps or balanced.")] = "auto",
) -> None:
    """Make the checks of a run on a model and a few questions, before hours are spent; exit code 2 if one fails."""
    from experiments.report.checks_table import checks_table
    from experiments.sample.doctor import examine

    with output().status(f"examining {model}") as status:
        found = examine(model, dataset, dtype=dtype, device=device, tell=status.update)
    output().record(**found.to_dict())
    output().show(checks_table(found.to_dict()["checks"]))
    output().say(f"{model}: {found.verdict}", style="green" if found.passed else "bold red")
    if not found.passed:
        raise typer.Exit(2)
