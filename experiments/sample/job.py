"""What is left to sample in a cell: questions and manifest written, gold answers kept up to date."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

import pandas as pd

from experiments.config.run_folder import stored_cell
from experiments.config.study import Cell
from experiments.sample.prompting import Answerer, Asked, ask_all, gold_ids, stop_strings
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import written
from semcal.questions.question import Dataset, Question
from semcal.runs.files import content_key
from semcal.runs.run import Run, Shard, shards
from semcal.sampling.records import Sampling

PACKAGES = ("semcal", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn")


def refresh_gold(run: Run, dataset: Dataset) -> None:
    """Take over gold answers, groups and aliases that were corrected since the run started; its results are then out
    of date, and the next analysis replaces them.

    Raises:
        UserError: a question of the run is gone or asks something else now.
    """
    if not run.manifest():
        return
    check_questions(run, dataset)
    table, asked_now = run.questions(), {q.id: q for q in dataset.questions}
    known = [asked_now[q] for q in table["id"]]
    if _gold_columns(run.question_records()) != _gold_columns(known) or run.aliases() != dataset.aliases:
        run.write_manifest(run.manifest() | {"analysed": {}})
        style = stored_cell(run).style
        now = [written(q, style) for q in known]
        rows = zip(now, table["written"], table["written_ids"], strict=True)
        # Token ids need the model, so those of changed answers are dropped.
        ids = [list(ids) if text == before else [] for text, before, ids in rows]
        new = {"written": now, "written_ids": ids}
        run.write_questions(table.assign(**_gold_columns(known), **new), dataset.aliases)


def check_questions(run: Run, dataset: Dataset) -> None:
    """
    Raises:
        UserError: a question of the run is gone or asks something else now.
    """
    table, now = run.questions(), {q.id: q for q in dataset.questions}
    for question_id, text in zip(table["id"], table["text"], strict=True):
        if question_id not in now or now[question_id].text != text:
            raise UserError(
                f"{run.folder} was started with another question {question_id!r}; delete the folder, or give this "
                "study another name or output"
            )


@dataclass(frozen=True)
class SamplingJob:
    """What is left to sample in a run."""

    run: Run
    cell: Cell
    asked: tuple[Asked, ...]
    settings: Sampling
    todo: tuple[str, ...]  # shard keys

    @property
    def questions_left(self) -> int:
        return sum(len(s.question_ids) for s in self.shards if s.key in self.todo)

    @property
    def shards(self) -> list[Shard]:
        manifest = self.run.manifest()
        return shards(manifest["samples_key"], [a.question.id for a in self.asked], manifest["shard_size"])


def prepare(cell: Cell, run: Run, dataset: Dataset, model: Answerer, siblings: Sequence[Run]) -> SamplingJob:
    """Write questions and manifest, take over shards that a sibling run has sampled already, and say what is left.

    Raises:
        UserError: weights or prompts differ from those the run was started with; the model lacks a hook.
    """
    asked = ask_all(cell, dataset, model)
    if cell.capture.positions and isinstance(model, LanguageModel):
        choose_hooks(model.model, cell.capture.hooks)  # before anything is written that says so
    settings = Sampling(
        **cell.sampling.model_dump(include={"m", "temperature", "top_k", "top_p"}),
        max_new_tokens=cell.sampling.length(cell.style),
        stop=stop_strings(cell),
        seed=cell.seed,
    )
    exact = cell.sampling.exact and cell.sampling.exact.model_dump()
    key = content_key(
        settings.to_dict() | ({"exact": exact} if cell.enumerated else {}),
        [(a.question.id, a.ids_hash) for a in asked],
        model.weights_hash,
        model.tokenizer_hash,
        str(model.dtype),
        cell.capture.identity(),
    )
    manifest = run.manifest()
    if manifest and manifest["samples_key"] != key:
        changed = "weights" if manifest["weights_hash"] != model.weights_hash else "questions or prompts"
        raise UserError(
            f"{run.folder} was started with different {changed}; delete the folder, or give this study another name "
            "or output"
        )
    if not manifest:
        run.write_questions(_question_table(cell, model, asked), dataset.aliases)
        if cell.capture.positions:
            run.write_prompt_ids([a.prompt.ids for a in asked])
        shown = dataset.exemplars if cell.model.prompt == "few-shot" and cell.prompting.shots else ()
        run.write_manifest(
            _new_manifest(cell, model, settings, key, [a.question.id for a in asked])
            # Whether few-shot exemplars show a chain of thought that no one wrote (a template).
            | {"exact": exact, "cot_from_template": cell.style == "cot" and any("cot" not in e.worked for e in shown)}
        )
    for shard in run.missing_shards():
        any(run.adopt_shard(other, shard, with_activations=bool(cell.capture.positions)) for other in siblings)
    return SamplingJob(run, cell, tuple(asked), settings, tuple(run.missing_shards()))


def _question_table(cell: Cell, model: Answerer, asked: Sequence[Asked]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [a.question.id for a in asked],
            "text": [a.question.text for a in asked],
            **_gold_columns([a.question for a in asked]),
            "choices": [list(a.question.choices) for a in asked],
            "prompt": [a.text for a in asked],
            "prompt_tokens": [len(a.prompt.ids) for a in asked],
            "prompt_hash": [a.ids_hash for a in asked],
            "written": [written(a.question, cell.style) for a in asked],
            "written_ids": [list(gold_ids(cell, model, a)) for a in asked],
        }
    )


def _gold_columns(questions: Sequence[Question]) -> dict[str, list[Any]]:
    """The columns of a question that the analysis reads; they may be corrected after sampling."""
    return {
        "group": [q.group for q in questions],
        "answers": [list(q.answers) for q in questions],
        "others": [[list(forms) for forms in q.others] for q in questions],
        "incorrect": [list(q.incorrect) for q in questions],
    }


def _new_manifest(cell: Cell, model: Answerer, settings: Sampling, key: str, ids: Sequence[str]) -> dict[str, Any]:
    return {
        "samples_key": key,
        "started": date.today().isoformat(),
        "shard_size": cell.sampling.shard_size,
        "shards": [s.key for s in shards(key, ids, cell.sampling.shard_size)],
        "positions": cell.capture.positions,
        "model": model.path,
        "revision": model.revision,
        "weights_hash": model.weights_hash,
        "tokenizer_hash": model.tokenizer_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "sampling": settings.to_dict(),
        "sampling_work": [],
        "questions": len(ids),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
