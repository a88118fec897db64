"""One cell of the grid, stage by stage: prepare and sample (with the model), score and probe (without it)."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.config import Cell, KthWordConfig
from experiments.prompting import Asked, ask_all, stop_strings
from experiments.reading import parse
from probes.capture import ResidualCapture
from probes.evaluate import evaluate, evaluate_scalar
from probes.targets import b_confidence, class_target, semantic_entropy
from semcal.answers import Answer, in_words, stop_rule
from semcal.calibration import calibrate
from semcal.errors import NonFiniteError, UserError
from semcal.models import LanguageModel
from semcal.questions import CONTINUATION, Dataset, Question
from semcal.sampling import LENGTH, Sampling, generate
from semcal.semantics import UNPARSED, ClassDistribution, Collapse, ExactMatch, KthWord, count_matrix
from semcal.store import Run, Shard, content_key, shards

PACKAGES = ("semcal", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn")


def collapse_of(cell: Cell, aliases: dict[str, str]) -> Collapse:
    """The collapsing function B of a cell."""
    return KthWord(cell.semantics.k) if isinstance(cell.semantics, KthWordConfig) else ExactMatch(aliases)


# ---- before the model ----------------------------------------------------------------------------------------------


def differing_key(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """The first key in which two nested configurations differ, with both values; None if they agree."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := differing_key(a, b, f"{prefix}{key}."):
                return inner
        elif a != b:
            return f"{prefix}{key} was {a!r}, is now {b!r}"
    return None


def open_cell(cell: Cell) -> Run:
    """The run folder of a cell, new or found; what only concerns the analysis may have changed since.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    run = Run(Path(cell.folder))
    if not (run.folder / "config.yaml").is_file():
        if run.folder.is_file():
            raise UserError(f"{run.folder} is a file; choose another output folder")
        run.write_config(cell.model_dump(mode="json"))
        return run
    if not run.manifest():  # nothing was sampled, so nothing can be mixed
        run.write_config(cell.model_dump(mode="json"))
        return run
    old = stored_cell(run)
    if difference := differing_key(old.sampling_part(), cell.sampling_part()):
        raise UserError(
            f"{run.folder} holds a run of another configuration ({difference}); give this study another name or "
            "output, or delete the folder"
        )
    analysis = {"semantics", "calibration"}
    if old.model_dump(include=analysis) != cell.model_dump(include=analysis):
        run.forget_results()
    elif old.probes != cell.probes:
        run.forget_probes()
    if old != cell:
        run.write_config(cell.model_dump(mode="json"))
    return run


def stored_cell(run: Run) -> Cell:
    """The cell as a run's config.yaml holds it, wherever the folder lies now.

    Raises:
        UserError: a configuration of another version of semcal.
    """
    return parse(Cell, run.config() | {"folder": str(run.folder)}, str(run.folder / "config.yaml"))


def refresh_gold(run: Run, dataset: Dataset) -> None:
    """Take over gold answers, groups and aliases that were corrected since the run began; its results are forgotten.

    Raises:
        UserError: a question that the run has asked is gone or asks something else now.
    """
    if not run.manifest():
        return
    table, now = run.questions(), {q.id: q for q in dataset.questions}
    for question_id, text in zip(table["id"], table["text"], strict=True):
        if question_id not in now or now[question_id].text != text:
            raise UserError(
                f"{run.folder} was begun with another question {question_id!r}; delete the folder, or give this study "
                "another name or output"
            )
    answers, groups = [list(now[q].answers) for q in table["id"]], [now[q].group for q in table["id"]]
    if (
        answers != [list(a) for a in table["answers"]]
        or groups != list(table["group"])
        or run.aliases() != dataset.aliases
    ):
        run.write_questions(table.assign(answers=answers, group=groups), dataset.aliases)
        run.forget_results()


# ---- with the model ------------------------------------------------------------------------------------------------


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
        left = set(self.todo)
        return sum(len(s.question_ids) for s in self.shards if s.key in left)

    @property
    def shards(self) -> list[Shard]:
        manifest = self.run.manifest()
        return shards(manifest["samples_key"], [a.question.id for a in self.asked], manifest["shard_size"])


def prepare(cell: Cell, run: Run, dataset: Dataset, model: LanguageModel, siblings: Sequence[Run]) -> SamplingJob:
    """Write questions and manifest, take over what a sibling has sampled already, and say what is left.

    Raises:
        UserError: the weights or the prompts are not those the run began with.
    """
    asked = ask_all(cell, dataset, model)
    settings = Sampling(
        m=cell.sampling.m,
        temperature=cell.sampling.temperature,
        top_k=cell.sampling.top_k,
        top_p=cell.sampling.top_p,
        max_new_tokens=cell.sampling.length(cell.style),
        stop=stop_strings(cell),
        seed=cell.seed,
    )
    key = content_key(
        settings.to_dict(),
        [(a.question.id, a.ids_hash) for a in asked],
        model.weights_hash,
        model.tokenizer_hash,
        str(model.dtype),
        cell.capture.model_dump(),
    )
    manifest = run.manifest()
    if manifest and manifest["samples_key"] != key:
        changed = "weights" if manifest["weights_hash"] != model.weights_hash else "questions or prompts"
        raise UserError(
            f"{run.folder} was begun with other {changed}; delete the folder, or give this study another name or output"
        )
    if not manifest:
        run.write_questions(_question_table(asked), dataset.aliases)
        run.write_manifest(
            _new_manifest(cell, model, settings, key, asked) | {"cot_from_template": _cot_from_template(cell, dataset)}
        )
    captured = bool(cell.capture.positions)
    for shard in run.missing_shards():
        any(run.adopt_shard(other, shard, with_activations=captured) for other in siblings)
    return SamplingJob(run, cell, tuple(asked), settings, tuple(run.missing_shards()))


def sample_cell(job: SamplingJob, model: LanguageModel, on_answered: Callable[[int], None]) -> None:
    """Sample and capture every missing shard; a shard is on disk as soon as it is finished.

    Raises:
        NonFiniteError: naming model, question and layer; shards finished before it stay.
    """
    by_id = {a.question.id: a for a in job.asked}
    rule = stop_rule(model, job.settings.stop)
    observer = ResidualCapture() if job.cell.capture.positions else None
    todo = set(job.todo)
    began = time.monotonic()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    for shard in job.shards:
        if shard.key not in todo:
            continue
        # Neighbours of similar length waste the least padding; the order does not change the samples.
        members = sorted((by_id[q] for q in shard.question_ids), key=lambda a: len(a.prompt.ids))
        try:
            answered = list(
                generate(
                    model.model,
                    [a.prompt for a in members],
                    job.settings,
                    rule,
                    device=model.device,
                    batch_size=job.cell.sampling.batch_size,
                    observer=observer,
                    on_answered=on_answered,
                )
            )
        except NonFiniteError as error:
            raise NonFiniteError(
                f"model {job.cell.model.name}: {error}; try dtype float32 (now {job.cell.model.dtype}); "
                "what was finished is kept"
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{job.cell.label}: out of GPU memory with {job.cell.sampling.batch_size} questions × {job.settings.m} "
                "samples at once; lower sampling.batch_size and run again: what was finished is kept"
            ) from error
        if observer is not None:
            seen = observer.take()
            order = [seen.keys.index(q) for q in shard.question_ids]
            for position in job.cell.capture.positions:
                job.run.write_activations(shard.key, position, seen.layers, seen.values[order], seen.token_ids[order])
        words = {a.key: in_words(model, a, job.settings.stop) for a in answered}
        job.run.write_samples(shard.key, [_row(q, answer) for q in shard.question_ids for answer in words[q]])
    manifest = job.run.manifest()
    manifest["sampling_seconds"] = manifest.get("sampling_seconds", 0.0) + time.monotonic() - began
    manifest["batch_sizes"] = sorted({*manifest["batch_sizes"], job.cell.sampling.batch_size})
    if model.device.type == "cuda":
        manifest["peak_memory_bytes"] = torch.cuda.max_memory_allocated(model.device)
    job.run.write_manifest(manifest)


def _row(question_id: str, answer: Answer) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "text": answer.text,
        "token_ids": list(answer.ids),
        "count": answer.count,
        "logprob": answer.logprob,
        "finish": answer.finish,
    }


def _question_table(asked: Sequence[Asked]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [a.question.id for a in asked],
            "group": [a.question.group for a in asked],
            "text": [a.question.text for a in asked],
            "answers": [list(a.question.answers) for a in asked],
            "prompt": [a.text for a in asked],
            "prompt_tokens": [len(a.prompt.ids) for a in asked],
            "prompt_hash": [a.ids_hash for a in asked],
        }
    )


def _new_manifest(
    cell: Cell, model: LanguageModel, settings: Sampling, key: str, asked: Sequence[Asked]
) -> dict[str, Any]:
    ids = [a.question.id for a in asked]
    return {
        "samples_key": key,
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
        "sampling_path": "expanded",
        "batch_sizes": [cell.sampling.batch_size],
        "questions": len(asked),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _cot_from_template(cell: Cell, dataset: Dataset) -> bool:
    """Whether few-shot exemplars show a chain of thought that nobody thought."""
    shown = dataset.exemplars if cell.model.prompt == "few-shot" and cell.prompting.shots else ()
    return cell.style == "cot" and any("cot" not in e.worked for e in shown)


# ---- without the model ---------------------------------------------------------------------------------------------


def distributions(cell: Cell, run: Run) -> list[ClassDistribution]:
    """The class distribution of every question, in the order of `run.questions()`."""
    collapse = collapse_of(cell, run.aliases())
    by_question = dict(iter(run.samples().groupby("question_id", sort=False)))
    return [_collapse_one(collapse, q, by_question[q.id], cell.style) for q in run.question_records()]


def _collapse_one(collapse: Collapse, question: Question, rows: pd.DataFrame, style: str) -> ClassDistribution:
    texts = list(rows["text"])
    if style == CONTINUATION:  # the last word of a continuation that was cut may be half a word
        cut = (rows["finish"] == LENGTH).to_list()
        texts = [_whole_words(t) if c else t for t, c in zip(texts, cut, strict=True)]
    return ClassDistribution.collapse(collapse, question, zip(texts, rows["count"], strict=True), style)


def _whole_words(text: str) -> str:
    return re.sub(r"\S+$", "", text)


def score(cell: Cell, run: Run) -> None:
    """Collapse answers into classes and measure calibration; writes classes.parquet and calibration.json."""
    collapsed = distributions(cell, run)
    table = run.questions()
    samples = run.samples()
    run.write_classes(_class_table(list(table["id"]), collapsed))
    truncated = float(samples.loc[samples["finish"] == LENGTH, "count"].sum() / samples["count"].sum())
    matrix = count_matrix(collapsed)
    result = calibrate(
        matrix.counts,
        matrix.gold,
        matrix.unparsed,
        truncated,
        table["group"].to_numpy(),
        m=cell.sampling.m,
        bootstrap=cell.calibration.bootstrap,
        null_draws=cell.calibration.null_draws,
        level=cell.calibration.level,
        seed=cell.seed,
    )
    run.write_calibration({"semantics": collapse_of(cell, run.aliases()).name} | result.to_dict())


def _class_table(ids: Sequence[str], collapsed: Sequence[ClassDistribution]) -> pd.DataFrame:
    rows = []
    for question_id, d in zip(ids, collapsed, strict=True):
        counts = d.counts if d.gold in d.counts else {**d.counts, d.gold: 0}
        for klass, count in counts.items():
            rows.append((question_id, klass, count, count / d.m, klass == d.gold, klass == UNPARSED))
    return pd.DataFrame(rows, columns=["question_id", "klass", "count", "mass", "is_gold", "is_unparsed"])


def probe(cell: Cell, run: Run) -> None:
    """Fit probes on the captured activations; writes probes.parquet."""
    collapsed = distributions(cell, run)
    groups = list(run.questions()["group"])
    frames = []
    for position in cell.capture.positions:
        stored = run.activations(position)
        settings: dict[str, Any] = {
            "layers": stored.layers,
            "group": groups,
            "folds": cell.probes.folds,
            "permutations": cell.probes.permutations,
            "seed": cell.seed,
        }
        for target in cell.probes.targets:
            if target == "classes":
                classes = class_target(
                    [d.counts for d in collapsed], max_classes=cell.probes.max_classes, m=cell.sampling.m
                )
                frame = evaluate(stored.values, classes, **settings)
            else:
                values = {"b_confidence": b_confidence, "entropy": semantic_entropy}[target](
                    [d.counts for d in collapsed]
                )
                frame = evaluate_scalar(stored.values, values, name=target, **settings)
            frames.append(frame.assign(position=position))
    run.write_probes(pd.concat(frames, ignore_index=True))
