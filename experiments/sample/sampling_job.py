"""What is left to sample in a run: its questions and manifest, written or compared, and its shards."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

import pandas as pd

from experiments.config.collapsing_functions import known_aliases
from experiments.config.run_folder import stored_cell
from experiments.config.study import Cell
from experiments.sample.asked import Asked, ask_all, form_of, gold_ids, stop_strings
from experiments.sample.models import Answerer
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.models.weights import changed
from semcal.questions.pool import pool
from semcal.questions.prompts import exemplars_for
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.runs.claims import writing
from semcal.runs.files import content_key
from semcal.runs.run import Run, Shard, shards
from semcal.sampling.records import Sampling

PACKAGES = ("semcal", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn")
log = logging.getLogger(__name__)


def gold_key(dataset: Dataset) -> str:
    """16 digits that change when a question, its gold answer, its group or an alias does."""
    questions = dataset.questions
    texts = [(q.id, q.text) for q in questions]
    return content_key(texts, _gold_columns(questions), asdict(known_aliases(dataset)))


def refresh_gold(run: Run, dataset: Dataset, key: str) -> None:
    """Take over gold answers, groups and aliases that were corrected since the run started; its results are then out
    of date, and the next analysis replaces them. `key` is that of the dataset; a run that was compared with it before
    is not read again.

    Raises:
        UserError: a question of the run is gone or asks something else now.
    """
    if not (manifest := run.manifest()) or manifest.get("gold_key") == key:
        return
    check_questions(run, dataset)
    table, asked_now = run.questions(), {q.id: q for q in dataset.questions}
    known = [asked_now[q] for q in table["id"]]
    aliases = known_aliases(dataset)
    if _gold_columns(run.question_records()) != _gold_columns(known) or not run.has_aliases(aliases):
        now = [form_of(stored_cell(run)).gold(q) for q in known]
        rows = zip(now, table["written"], table["written_ids"], strict=True)
        # Token ids need the model, so those of changed answers are dropped.
        ids = [list(ids) if text == before else [] for text, before, ids in rows]
        new = {"written": now, "written_ids": ids}
        with run.replacing() as replaced:
            replaced.write_questions(table.assign(**_gold_columns(known), **new), aliases)
            replaced.write_manifest(run.manifest() | {"analysed": {}, "gold_key": key})
    else:
        run.change_manifest(lambda manifest: manifest | {"gold_key": key})


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
        """Number of questions whose samples are not on disk."""
        return len(self.asked) - self.run.questions_saved()

    @property
    def shards(self) -> list[Shard]:
        manifest = self.run.manifest()
        return shards(manifest["samples_key"], [a.question.id for a in self.asked], manifest["shard_size"])


def prepare(cell: Cell, run: Run, dataset: Dataset, model: Answerer, siblings: Sequence[Run]) -> SamplingJob:
    """Write questions and manifest, take over shards that a sibling run has sampled already, and say what is left.

    Files of shards that are cut short are removed, with a warning: what they held is among what is left.

    Raises:
        UserError: weights or prompts differ from those the run was started with; the model lacks a hook.
    """
    asked = ask_all(cell, dataset, model)
    if cell.capture.positions and isinstance(model, LanguageModel):
        choose_hooks(model.model, cell.capture.hooks)  # before anything is written that says so
    settings = Sampling(
        **cell.sampling.model_dump(include={"m", "temperature", "top_k", "top_p"}),
        max_new_tokens=cell.sampling.length(cell.style),
        stop=stop_strings(cell, model),
        seed=cell.seed,
    )
    exact = cell.sampling.exact and cell.sampling.exact.model_dump()
    key = content_key(
        settings.to_dict() | ({"exact": exact} if cell.enumerated else {}) | _of_engine(cell),
        [(a.question.id, a.ids_hash) for a in asked],
        model.weights_hash,
        model.tokenizer_hash,
        str(model.dtype),
        cell.capture.identity(),
    )
    with writing(run.folder):  # another process may start it, too
        if not (manifest := run.manifest()):
            _start(run, dataset, model, SamplingJob(run, cell, tuple(asked), settings, ()), key)
    if manifest and (other := _other_than(manifest, cell, model, key)):
        raise UserError(
            f"{run.folder} was started with {other}; delete the folder, or give this study another name or output"
        )
    siblings = [other for other in siblings if not _computes_otherwise(other.manifest(), model)]
    if siblings and not run.manifest().get("checks"):
        same = (other.manifest() for other in siblings if other.folder != run.folder)
        if taken := next((m["checks"] for m in same if m.get("samples_key") == key and m.get("checks")), None):
            run.change_manifest(lambda manifest: manifest | {"checks": taken})
    for path in run.damaged():
        log.warning("%s: %s was cut short, so what it held is made again", cell.label, path)
        path.unlink()
    for shard in run.missing_shards():
        any(run.adopt_shard(other, shard, with_activations=bool(cell.capture.positions)) for other in siblings)
    return SamplingJob(run, cell, tuple(asked), settings, tuple(run.missing_shards()))


def _start(run: Run, dataset: Dataset, model: Answerer, job: SamplingJob, key: str) -> None:
    """Write the questions of a run and then its manifest, by which it is known to have been started."""
    cell, asked = job.cell, job.asked
    run.write_questions(_question_table(cell, model, asked), known_aliases(dataset))
    if cell.capture.positions:
        run.write_prompt_ids([a.prompt.ids for a in asked])
    few_shot = cell.model.prompt == "few-shot" and cell.style != CONTINUATION and cell.prompting.shots > 0
    shown = exemplars_for(dataset, cell.style) if few_shot else ()
    run.write_manifest(
        _new_manifest(cell, model, job.settings, key, [a.question.id for a in asked])
        | {
            "exact": cell.sampling.exact and cell.sampling.exact.model_dump(),
            "gold_key": gold_key(dataset),
            "exemplars": None if not shown else "pool" if shown[0] in pool() else "dataset",
            # Whether exemplars in cot, which are then questions with options, show no chain of thought.
            "cot_without_steps": cell.style == "cot" and any("cot" not in e.worked for e in shown),
        }
    )


def _of_engine(cell: Cell) -> dict[str, str]:
    """What samples are known by beside their settings: another engine draws other ones of the same law."""
    return {} if cell.model.engine == "hf" else {"engine": cell.model.engine}


def _other_than(manifest: Mapping[str, Any], cell: Cell, model: Answerer, key: str) -> str:
    """What has changed since a run was started, in words; "" if nothing has."""
    if (engine := manifest.get("engine", {}).get("name", "hf")) != cell.model.engine:
        return f"engine {engine}"
    if manifest["weights_hash"] != model.weights_hash:
        return "different weights"
    if manifest["tokenizer_hash"] != model.tokenizer_hash:
        return "a different tokenizer or chat template"
    if settings := _computes_otherwise(manifest, model):
        return settings
    return "different questions or prompts" if manifest["samples_key"] != key else ""


def _computes_otherwise(manifest: Mapping[str, Any], model: Answerer) -> str:
    """Which setting the model of a run had otherwise, with the same weights; "" if none, or if it was not recorded."""
    return changed(manifest.get("computation", {}), model.computation) if isinstance(model, LanguageModel) else ""


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
            "written": [form_of(cell).gold(a.question) for a in asked],
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
        "adapter": cell.model.adapter,
        "base": model.base if isinstance(model, LanguageModel) else "",
        "computation": model.computation if isinstance(model, LanguageModel) else {},
        "tokenizer_hash": model.tokenizer_hash,
        "quantised": model.quantised if isinstance(model, LanguageModel) else "",
        "engine": {"name": cell.model.engine},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "sampling": settings.to_dict(),
        "sampling_work": [],
        "questions": len(ids),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def saved(run: Run) -> str:
    """How many questions of a run are on disk, in words."""
    if (done := run.questions_saved()) == 0:
        return "no question is saved yet"
    return f"{done} of {run.manifest()['questions']} questions are saved, and the same command continues"
