"""Pairs of one correct and one wrong answer of the model's own, and the file that keeps them: what DPO is trained on,
and how GRPO finds questions whose answers can be told apart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from experiments.train.conversations import Turn
from experiments.train.preferences import Pair, pair_of
from experiments.train.stage_settings import PairSettings, RewardSettings
from experiments.train.training_questions import right, shuffled
from semcal.answers import sample
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.sampling.records import Prompt
from semcal.seeds import keyed_generator
from semcal.semantics.collapsing.collapse import Collapse

Tell = Callable[[str], None]
_AT_ONCE = 16  # questions whose answers are drawn before they are written down
_OFTEN = 4  # times that a pair, or its question, is trained on at most


def own_pairs(
    model: LanguageModel,
    settings: PairSettings | RewardSettings,
    turns: Sequence[Turn],
    b: Collapse,
    file: Path,
    tell: Tell,
) -> list[Pair]:
    """Pairs of one correct and one wrong answer that the model gave to one question at temperature 1.

    Questions are asked in an order that the seed gives until there are enough pairs or no questions left; answers that
    do not end are left out. `file` gets a line per question as it is answered, with or without a pair, and is read
    first, so that an interruption loses at most one batch of questions.

    Raises:
        UserError: so few pairs that each would be trained on more than _OFTEN times.
    """
    order = list(islice(shuffled(turns, settings.seed, "dpo"), min(len(turns), settings.questions)))
    tried = _read_tried(file, order)
    pairs = sum(pair is not None for pair in tried)
    before, begun = _progress(pairs, settings.pairs, len(tried), len(order)), time.monotonic()
    while len(tried) < len(order) and pairs < settings.pairs:
        asked = order[len(tried) : len(tried) + _AT_ONCE]
        prompts = [Prompt(turn.key, model.encode_rendered(model.render_chat(turn.prompt))) for turn in asked]
        how = {"m": settings.samples, "max_new_tokens": settings.longest, "seed": settings.seed}
        drawn = sample(model, prompts, stop=model.turn_ends, **how)
        found = []
        for turn, answers in zip(asked, drawn, strict=True):
            ended = [a for a in answers if a.finish == "stop"]
            rng = keyed_generator(settings.seed, "pair", turn.key)
            found.append(pair_of(turn, ended, right(b, turn, [a.text for a in ended]), rng))
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(_line(turn, pair) for turn, pair in zip(asked, found, strict=True))
        tried += found
        pairs = sum(pair is not None for pair in tried)
        share = _progress(pairs, settings.pairs, len(tried), len(order))
        left = (time.monotonic() - begun) * (1 - share) / (share - before) / 60
        tell(f"{pairs} of {settings.pairs} pairs from {len(tried)} questions · {left:.1f} min left")
    kept = [pair for pair in tried if pair is not None][: settings.pairs]
    if len(kept) * _OFTEN < (needed := settings.steps * settings.batch_size):
        raise UserError(
            f"only {len(kept)} of {len(tried)} questions were answered both right and wrong, and {needed // _OFTEN} "
            f"are needed for {settings.steps} steps of {settings.batch_size}; raise questions ({settings.questions}) "
            f"or samples ({settings.samples}), lower steps, or train on easier questions"
        )
    return kept


def _progress(pairs: int, wanted: int, tried: int, there_are: int) -> float:
    """The share of the drawing that is done: it ends with the pairs, or with the questions."""
    return min(1.0, max(pairs / wanted, tried / there_are))


def _line(turn: Turn, pair: Pair | None) -> str:
    answers = {"chosen": pair and pair.chosen, "rejected": pair and pair.rejected}
    return json.dumps({"question": turn.question.id, "style": turn.style, **answers}, ensure_ascii=False) + "\n"


def _read_tried(file: Path, order: Sequence[Turn]) -> list[Pair | None]:
    """What an interrupted drawing of pairs has written; a last line that is not whole is cut off."""
    if not file.is_file():
        return []
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    text = whole.decode("utf-8")
    file.write_text(text + "\n" if text else "", encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    tried: list[Pair | None] = []
    for row, turn in zip(rows, order, strict=False):
        if (row["question"], row["style"]) != (turn.question.id, turn.style):
            raise UserError(f"{file} was drawn from other questions; delete it, or choose another --out")
        tried.append(None if row["chosen"] is None else Pair(turn, row["chosen"], row["rejected"]))
    return tried
