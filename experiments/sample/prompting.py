"""From questions to token ids: what a model will really read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from experiments.config.study import Cell
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, QUESTION_POSITIONS
from semcal.questions.prompts import STOPS, chat, few_shot, question_span, written
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.sampling.records import Prompt

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel

Answerer: TypeAlias = "LanguageModel | ServedModel"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question and what the model reads for it; a served model reads text, so its prompt has no token ids here.

    `question_tokens` are the places of the question's own tokens in the prompt, where something is captured there.
    """

    question: Question
    text: str
    prompt: Prompt
    question_tokens: range = range(0)

    @property
    def ids_hash(self) -> str:
        """Of the token ids, or of the text where there are none."""
        read = ",".join(map(str, self.prompt.ids)) or self.text
        return hashlib.sha256(read.encode()).hexdigest()[:16]


def stop_strings(cell: Cell) -> tuple[str, ...]:
    """The stop strings of a cell: those set, else the style's; under a chat template the model ends by itself."""
    if cell.sampling.stop is not None:
        return tuple(cell.sampling.stop)
    return () if cell.model.prompt == "chat" else STOPS[cell.style]


def prompt_text(cell: Cell, dataset: Dataset, model: Answerer, question: Question) -> str:
    """The prompt of one question as text."""
    if cell.style == CONTINUATION:
        return question.text
    if cell.model.prompt == "chat":
        assert isinstance(model, LanguageModel)  # a served one is refused by the configuration
        return model.render_chat(chat(question, cell.style))
    prompting = cell.prompting
    return few_shot(question, dataset.exemplars, cell.style, prompting.shots, cell.seed, vary=prompting.vary)


def ask(cell: Cell, dataset: Dataset, model: Answerer, question: Question) -> Asked:
    """One question with its prompt."""
    text = prompt_text(cell, dataset, model, question)
    if not isinstance(model, LanguageModel):
        return Asked(question, text, Prompt(question.id, ()))
    in_chat = cell.style != CONTINUATION and cell.model.prompt == "chat"
    prompt = Prompt(question.id, model.encode_rendered(text) if in_chat else model.encode(text))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return Asked(question, text, prompt)
    try:
        start, stop = question_span(text, question, cell.style)
    except ValueError as error:
        raise UserError(f"{cell.label}: {error}; capture at last_prompt_token instead") from None
    return Asked(question, text, prompt, model.tokens_at(text, start, stop, rendered=in_chat))


def gold_text(style: str, question: Question) -> str:
    """The gold answer as an exemplar in this style shows it; of a text to be continued, what truly follows."""
    return question.answers[0] if style == CONTINUATION else written(question, style)


def gold_ids(cell: Cell, model: Answerer, asked: Asked) -> tuple[int, ...]:
    """The token ids that the model would have had to generate for the gold answer as `gold_text` has it.

    It is encoded behind its prompt, for what it follows decides how it begins. What ends an answer is not part of it.
    Empty for a served model, and where prompt and answer share a token, so that no answer begins like that.
    """
    if not isinstance(model, LanguageModel):
        return ()
    text = gold_text(cell.style, asked.question)
    if cell.style != CONTINUATION and cell.model.prompt == "chat":
        whole = model.encode_rendered(asked.text + _lead(cell, model, asked, text) + text)
    else:
        whole = model.encode(f"{asked.text} {text}")
    prompt = asked.prompt.ids
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


def _lead(cell: Cell, model: LanguageModel, asked: Asked, text: str) -> str:
    """What a chat template writes between where the answer begins and its first word, such as a space."""
    answer = {"role": "assistant", "content": text}
    whole = model.render_chat([*chat(asked.question, cell.style), answer], answered=True)
    return whole[len(asked.text) :].partition(text)[0] if whole.startswith(asked.text) and text in whole else ""


def ask_all(cell: Cell, dataset: Dataset, model: Answerer) -> list[Asked]:
    """Every question with its prompt, those whose prompt leaves no room refused or dropped as the study says.

    Raises:
        UserError: a prompt and `max_new_tokens` together exceed the model's context (count and ids named).
    """
    asked = [ask(cell, dataset, model, question) for question in dataset.questions]
    return _fitting(cell, asked, model.context) if isinstance(model, LanguageModel) else asked


def look(cell: Cell, dataset: Dataset, model: LanguageModel | None, n: int) -> list[str]:
    """What the model will really read for the first n questions, in words: ids, special tokens, where it stops."""
    told = []
    for question in dataset.questions[:n]:
        if model is None:  # a server keeps its tokenizer to itself
            shots, vary = cell.prompting.shots, cell.prompting.vary
            text = few_shot(question, dataset.exemplars, cell.style, shots, cell.seed, vary=vary)
            told.append(f"{question.id} · token ids are the server's own\n{text}")
            continue
        asked = ask(cell, dataset, model, question)
        ids, tokenizer = asked.prompt.ids, model.tokenizer
        begins = sum(i == tokenizer.bos_token_id for i in ids)
        facts = [
            f"{len(ids)} tokens of {model.context - cell.sampling.length(cell.style)} that fit",
            f"{begins} × {tokenizer.bos_token}" if tokenizer.bos_token_id is not None else "no BOS token",
            f"last token {tokenizer.convert_ids_to_tokens(ids[-1])!r}{_captured(cell, LAST_PROMPT_TOKEN)}",
            f"stops at {', '.join(map(repr, stop_strings(cell))) or 'its end-of-sequence token'}",
            f"gold {question.answers[0]!r}",
        ]
        if its := asked.question_tokens:
            span = tokenizer.convert_ids_to_tokens([ids[its[0]], ids[its[-1]]])
            facts.append(f"question {span[0]!r} to {span[1]!r}, tokens {its[0]} to {its[-1]}")
        told.append(f"{question.id} · {' · '.join(facts)}\n{tokenizer.decode(list(ids), skip_special_tokens=False)}")
    return told


def _captured(cell: Cell, position: str) -> str:
    return ", where activations are captured" if position in cell.capture.positions else ""


def _fitting(cell: Cell, asked: Sequence[Asked], context: int) -> list[Asked]:
    room = context - cell.sampling.length(cell.style)
    if room < 1:
        raise UserError(
            f"{cell.label}: max_new_tokens is {context - room}, the model's context {context}; lower max_new_tokens"
        )
    long = [a for a in asked if len(a.prompt.ids) > room]
    if not long:
        return list(asked)
    names = ", ".join(a.question.id for a in long[:5]) + (", ..." if len(long) > 5 else "")
    longest = max(len(a.prompt.ids) for a in long)
    what = (
        f"{cell.label}: {len(long)} of {len(asked)} prompts ({names}) are longer than the {room} tokens that the "
        f"context of {context} leaves beside max_new_tokens {context - room} (longest {longest})"
    )
    kept = [a for a in asked if len(a.prompt.ids) <= room]
    if cell.on_long_prompt == "refuse":
        raise UserError(f"{what}; lower prompting.shots or max_new_tokens, or set on_long_prompt: drop")
    if not kept:
        raise UserError(f"{what}; dropping them leaves nothing")
    log.warning("%s; dropped", what)
    return kept
