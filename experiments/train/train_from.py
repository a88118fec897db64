"""A stage of training for any model and any questions: SFT on gold answers, DPO on the model's own, GRPO."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from experiments.sample.models import place_of, trained_files
from experiments.train.adapter import Adapted
from experiments.train.checkpoints import RECORD, Format, Progress, Training
from experiments.train.conversations import CHAT_TEMPLATE, Turn, labelled
from experiments.train.own_pairs import Tell, own_pairs
from experiments.train.policy import policy_stage
from experiments.train.preferences import preference_stage
from experiments.train.stage_settings import AdapterSettings, GoldSettings, PairSettings, RewardSettings
from experiments.train.training_questions import TrainingQuestions, right, shuffled
from experiments.train.tuning import Stage, train_on
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.held_out import write_trained
from semcal.questions.load_dataset import read_table
from semcal.semantics.collapsing.collapse import Collapse

_TOKENIZER = 40e6  # bytes, of the largest
log = logging.getLogger(__name__)


def train_from(
    start: str,
    stage: str,
    dataset: str,
    settings: AdapterSettings,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    tell: Tell = lambda _: None,
) -> Path:
    """Train a stage of a lineage; returns `out/STAGE`, a plain Hugging Face folder with merged weights.

    Next to the weights are `training.json`, what made them, and `trained.jsonl`, the questions that this model or one
    before it was trained on: a study names that file as `exclude`. Checkpoints along the way are the adapter alone. An
    interrupted training resumes from its last saved state and ends with the same weights.

    Args:
        start: Folder, file or Hub id of the model, or `real:NAME` (`experiments.sample.real_models`): a base for sft,
            usually the result of sft for dpo and grpo.
        stage: sft, dpo or grpo.
        dataset: As `TrainingQuestions.read`.
        settings: Of this stage (`stage_settings.settings_for`).
        tell: Hears what is done before the first step.

    Raises:
        UserError: no such dataset or model; dpo or grpo without a chat template; `out` was started with different
            settings; no room on the disk; nothing to learn from; training diverged.
    """
    start = place_of(start)
    questions = TrainingQuestions.read(dataset, settings.held_out)
    turns = questions.turns(settings.styles, need_answer=stage == "sft")
    b = None if stage == "sft" else questions.collapse(settings.styles)
    model = LanguageModel.load(start, dtype=settings.dtype)
    template = _chat_template(model, stage)
    turns = _fitting(model, turns, getattr(settings, "longest", 0))
    adapted = Adapted.of(model, rank=settings.rank, seed=settings.seed)
    folder = out / stage
    if not (folder / RECORD).is_file():
        _check_room(adapted, settings, folder)

    place = str(Path(start).resolve()) if Path(start).exists() else start
    made = {"stage": stage, "from_weights": model.weights_hash, "chat_template": template}
    made |= {"trained_on": len(questions.trained), "trained_questions": questions.digest} | asdict(settings)
    noted = {"from": place, "dataset": dataset}
    written = Format(RECORD, lambda _, to: adapted.write_adapter(to), lambda _, to: adapted.write_merged(to))
    kept = Training(made, checkpoints=folder, final=folder, written=written, noted=noted)
    if kept.finished:
        return kept.final
    earlier = [question for file in trained_files(start) for question in read_table(file)]
    write_trained([*earlier, *questions.trained], folder)
    built = _stage(settings, adapted, turns, b, folder, tell)
    return train_on(built, adapted.trained, model.tokenizer, kept, on_progress)  # pyright: ignore[reportArgumentType]


def _chat_template(model: LanguageModel, stage: str) -> str:
    """Which chat template is used, in words; a base model gets the default one.

    Raises:
        UserError: none, and answers are to be drawn from the model; or no token ends an answer.
    """
    if not model.eos_ids:
        raise UserError(f"{model.path} has no end-of-sequence token, so its answers could not end; set eos_token")
    if model.has_chat_template:
        return "its own"
    if stage != "sft":
        raise UserError(
            f"{model.path} has no chat template; train --stage sft first and start {stage} from the folder it writes"
        )
    model.tokenizer.chat_template = CHAT_TEMPLATE
    log.warning("%s has no chat template; the default one is used: question-answer", model.path)
    return "question-answer"


def _fitting(model: LanguageModel, turns: Sequence[Turn], longest: int) -> list[Turn]:
    """The turns that fit into the model's context together with their answer.

    Raises:
        UserError: none does.
    """

    def length(turn: Turn) -> int:
        messages = turn.prompt if longest else turn.messages
        return len(model.encode_rendered(model.render_chat(messages, answered=not longest))) + longest

    kept = [turn for turn in turns if length(turn) <= model.context]
    if not kept:
        raise UserError(f"no question fits into the context of {model.path}, {model.context} tokens; shorten them")
    if len(kept) < len(turns):
        log.warning(
            "left out %d conversations longer than the context, %d tokens", len(turns) - len(kept), model.context
        )
    return kept


def _check_room(adapted: Adapted, settings: AdapterSettings, folder: Path) -> None:
    """
    Raises:
        UserError: the disk has no room for the checkpoints that are not there yet, and for the state.
    """
    checkpoints = settings.checkpoints - len(list(folder.glob(f"step-*/{RECORD}")))
    needed = adapted.bytes_merged + (checkpoints + 6) * adapted.bytes_of_adapter + (checkpoints + 1) * _TOKENIZER
    needed -= sum(file.stat().st_size for file in (folder / "unfinished").glob("*"))  # which is replaced
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; make room, choose "
            "another --out, or lower checkpoints"
        )


def _stage(
    settings: AdapterSettings, adapted: Adapted, turns: list[Turn], b: Collapse | None, folder: Path, tell: Tell
) -> Stage:
    """What a stage trains on: gold answers, pairs of answers, or answers that are paid for."""
    plain, n = adapted.plain, settings.steps * settings.batch_size
    if isinstance(settings, GoldSettings):
        rows = [labelled(plain, turn) for turn in islice(shuffled(turns, settings.seed, "sft"), n)]
        arguments = {
            "per_device_train_batch_size": settings.batch_size,
            "max_length": None,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        return Stage(rows, SFTTrainer, SFTConfig, arguments)
    assert b is not None
    if isinstance(settings, PairSettings):
        pairs = own_pairs(plain, settings, turns, b, folder / "pairs.jsonl", tell)
        again = [pairs[i % len(pairs)].row for i in range(n)]
        return preference_stage(settings, again, plain.model)
    assert isinstance(settings, RewardSettings)
    mixed = [pair.turn for pair in own_pairs(plain, settings, turns, b, folder / "pairs.jsonl", tell)]
    return policy_stage(
        settings,
        plain,
        list(islice(shuffled(mixed, settings.seed, "grpo"), n)),
        lambda turn, answers: correct(b, turn, answers),
        longest=settings.longest,
        passes=settings.batch_size * settings.samples // settings.at_once,
        before_sampling=adapted.merge,
    )


def correct(b: Collapse, turn: Turn, answers: Sequence[str]) -> list[float]:
    """The reward: 1 for a correct answer, else 0, as in RL with verifiable rewards."""
    return [float(r) for r in right(b, turn, answers)]
