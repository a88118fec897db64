"""`semcal doctor`: the checks of a run, made on a model and a few questions before hours are spent.

It loads the model and samples a small run in a temporary folder, in the way in which a study would, and keeps nothing
but the checks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.config.run_folder import open_cell
from experiments.config.study import AtlasConfig, Cell, ModelConfig, Study, parse
from experiments.sample.asked import ask_all
from experiments.sample.models import load_model
from experiments.sample.run_checks import ACTIVATIONS, ENDS, LAW, REFERENCE, SAMPLES, TOKENS
from experiments.sample.sample_cell import sample_cell
from experiments.sample.sampling_job import prepare
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.load_dataset import load_dataset
from semcal.questions.pool import pool
from semcal.questions.question import Dataset
from semcal.sampling.checks import FAILED, NOT_MADE, PASSED, Check

QUESTIONS, NEW_TOKENS, EXEMPLARS = 16, 16, 8
LOADING, PROMPTS, SAMPLING = "loading", "prompts", "sampling"
_OF_A_RUN = (SAMPLES, ENDS, LAW, REFERENCE, TOKENS, ACTIVATIONS)


@dataclass(frozen=True)
class Diagnosis:
    """What was checked on a model.

    Attributes:
        model: Its path, as given.
        dataset: The questions that it was asked.
        checks: In the order in which they were made; what comes after a failure may not have been.
    """

    model: str
    dataset: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != FAILED for check in self.checks)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        failed = [check.name for check in self.checks if check.outcome == FAILED]
        if failed:
            return f"do not run it: {', '.join(failed)} failed"
        left_out = sum(check.outcome == NOT_MADE for check in self.checks)
        return f"ready: {len(self.checks) - left_out} checks passed, {left_out} could not be made"

    def to_dict(self) -> dict[str, Any]:
        facts = {"model": self.model, "dataset": self.dataset, "passed": self.passed, "verdict": self.verdict}
        return facts | {"checks": [asdict(check) for check in self.checks]}


def examine(
    model: str,
    dataset: str | None = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    tell: Callable[[str], object] = lambda _: None,
) -> Diagnosis:
    """Make the checks of a run on a model and some questions.

    Args:
        model: Local folder, Hub id or atlas:STAGE.
        dataset: A named dataset or a file of questions, as `semcal.load_dataset` takes it; None asks questions of
            general knowledge that come with semcal.
        dtype, device: As in `LanguageModel.load`.
        tell: Called with what is being done.

    Raises:
        UserError: a dataset that cannot be read, a served model, an unknown dtype.
    """
    asked = _questions(dataset)
    config = parse(ModelConfig, {"path": model, "dtype": dtype, "device": device}, "semcal doctor")
    if config.is_served:
        raise UserError(
            f"{model} is a server; doctor examines models that are loaded here: a folder, Hub id or atlas:base"
        )
    tell(f"loading {model}")
    began = time.monotonic()
    try:
        loaded = load_model(config)
    except UserError as error:
        return Diagnosis(model, asked.name, _stopped([], Check(LOADING, FAILED, str(error))))
    assert isinstance(loaded, LanguageModel)
    size = sum(p.numel() for p in loaded.model.parameters()) / 1e6
    stored = f"{loaded.quantised}, " if loaded.quantised else ""
    what = f"{type(loaded.model).__name__}, {size:,.1f} M parameters, {stored}{dtype} on {loaded.device}"
    made = [Check(LOADING, PASSED, f"{what}, {loaded.weights_hash}, {time.monotonic() - began:.1f} s")]
    with tempfile.TemporaryDirectory(prefix="semcal-doctor-") as folder:
        return Diagnosis(model, asked.name, _run(_cell(config, asked, folder), asked, loaded, made, tell))


def _run(
    cell: Cell, dataset: Dataset, model: LanguageModel, made: list[Check], tell: Callable[[str], object]
) -> tuple[Check, ...]:
    try:
        made = [*made, _prompts(cell, dataset, model)]
        run = open_cell(cell)
        job = prepare(cell, run, dataset, model, ())
    except UserError as error:
        return _stopped(made, Check(PROMPTS, FAILED, str(error)))
    tell(f"sampling {len(job.asked)} questions")
    try:
        sample_cell(job, model, lambda _: None)
    except UserError as error:
        checks = [Check(**check) for check in run.manifest().get("checks", [])]
        if any(check.outcome == FAILED for check in checks):
            return (*made, *checks)
        return _stopped(made, Check(SAMPLING, FAILED, str(error)))
    return (*made, *(Check(**check) for check in run.manifest()["checks"]))


def _prompts(cell: Cell, dataset: Dataset, model: LanguageModel) -> Check:
    ids = [a.prompt.ids for a in ask_all(cell, dataset, model)]
    tokenizer, lengths = model.tokenizer, [len(i) for i in ids]
    bos = ids[0].count(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else 0
    last = tokenizer.convert_ids_to_tokens(ids[0][-1])
    return Check(
        PROMPTS,
        PASSED,
        f"{len(ids)} of {dataset.name}, {min(lengths)} to {max(lengths)} tokens, {bos} × BOS, last token {last!r}",
    )


def _stopped(made: list[Check], failed: Check) -> tuple[Check, ...]:
    """What was made, what failed, and that nothing came after it."""
    return (*made, failed, *(Check.not_made(name, f"{failed.name} failed") for name in _OF_A_RUN))


def _questions(dataset: str | None) -> Dataset:
    if dataset is None:
        known = pool()
        return Dataset("general-knowledge", known[:QUESTIONS], known[QUESTIONS:])
    found = load_dataset(dataset, exemplars=EXEMPLARS)
    return replace(found, questions=found.questions[:QUESTIONS])


def _cell(config: ModelConfig, dataset: Dataset, folder: str) -> Cell:
    study = {
        "name": "doctor",
        "models": [config],
        # Stands for the questions, which are at hand.
        "datasets": [AtlasConfig(kind="atlas", family="facts", name=Path(dataset.name).stem)],
        "styles": ["concise"],
        "output": folder,
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "probes": {"enabled": False},
    }
    return parse(Study, study, "semcal doctor").cells()[0]
