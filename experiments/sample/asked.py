"""What a model reads: the questions of a cell as prompts, token by token, and where its answers stop."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from experiments.config.study import Cell
from experiments.sample.models import Answerer
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, QUESTION_POSITIONS
from semcal.questions.prompts import Chat, Continuation, FewShot, Form, Messages, question_span
from semcal.questions.prompts import asked as written_out
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.sampling.records import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question and the prompt that the model reads for it; a served model reads text, so it has no token ids here.

    `question_tokens` are the positions of the question's own tokens in the prompt; empty if nothing is captured there.
    """

    question: Question
    text: str
    prompt: Prompt
    question_tokens: range = range(0)

    @property
    def ids_hash(self) -> str:
        """A hash of the token ids, or of the text if there are none."""
        read = ",".join(map(str, self.prompt.ids)) or self.text
        return hashlib.sha256(read.encode()).hexdigest()[:16]


def form_of(cell: Cell) -> Form:
    """The form of a cell's prompts."""
    if cell.style == CONTINUATION:
        return Continuation(cell.style)
    if cell.model.prompt == "chat":
        return Chat(cell.style)
    return FewShot(cell.style, cell.prompting.shots, cell.prompting.vary, cell.seed)


def stop_strings(cell: Cell, model: Answerer | None = None) -> tuple[str, ...]:
    """The stop strings that the study sets, or those of the cell's form of prompt; and, if `model` reads its chat
    template, what that writes after an answer."""
    form = form_of(cell)
    stops = form.stops if cell.sampling.stop is None else tuple(cell.sampling.stop)
    ends = model.turn_ends if form.rendered and isinstance(model, LanguageModel) else ()
    return tuple(dict.fromkeys([*stops, *ends]))


def ask(cell: Cell, dataset: Dataset, model: Answerer, question: Question) -> Asked:
    """One question with its prompt.

    Raises:
        UserError: activations are to be captured at the question, and the chat template does not show it as it is.
    """
    form = form_of(cell)
    if not isinstance(model, LanguageModel):
        return Asked(question, form.text(dataset, question, _no_template), Prompt(question.id, ()))
    text = form.text(dataset, question, model.render_chat)
    typed = _typed(cell, model, question, text) if form.rendered else ()
    prompt = Prompt(question.id, _encode(model, text, typed, rendered=form.rendered))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return Asked(question, text, prompt)
    try:
        start, stop = question_span(text, question, cell.style)
    except ValueError as error:
        raise UserError(f"{cell.label}: {error}; capture at last_prompt_token instead") from None
    return Asked(question, text, prompt, model.tokens_at(text, start, stop, rendered=form.rendered))


def _typed(cell: Cell, model: LanguageModel, question: Question, text: str) -> list[tuple[int, int]]:
    """Where a conversation holds the question: control tokens there are text.

    Raises:
        UserError: the question contains some, and the chat template does not show it as it is.
    """
    try:
        return [question_span(text, question, cell.style)]
    except ValueError as error:
        if found := model.control_tokens_in(written_out(question)):
            raise UserError(
                f"{cell.label}: {error}, and {found[0]!r} in it would be a control token; reword it"
            ) from None
        return []


def _encode(model: LanguageModel, text: str, typed: Sequence[tuple[int, int]], *, rendered: bool) -> tuple[int, ...]:
    return model.encode_rendered(text, typed) if rendered else model.encode(text)


def _no_template(_: Messages) -> str:
    raise AssertionError("a served model has no chat template here; the configuration refuses prompt: chat for it")


def gold_ids(cell: Cell, model: Answerer, asked: Asked) -> tuple[int, ...]:
    """The token ids that the model would have to generate to write the gold answer as an exemplar shows it.

    The answer is encoded after its prompt, which decides how it begins. What ends an answer is not part of it. Empty
    for a served model, where no one knows how gold would be written, and where prompt and answer share a token, so that
    no answer begins like that.
    """
    form = form_of(cell)
    gold = form.gold(asked.question)
    if not isinstance(model, LanguageModel) or not gold:
        return ()
    try:
        text = form.answered(asked.question, asked.text, gold, partial(model.render_chat, answered=True))
    except UserError:  # a template that takes no conversation with an answer
        return ()
    typed = []
    if form.rendered:
        typed = [*_typed(cell, model, asked.question, asked.text), (len(text) - len(gold), len(text))]
    whole = _encode(model, text, typed, rendered=form.rendered)
    prompt = asked.prompt.ids
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


def ask_all(cell: Cell, dataset: Dataset, model: Answerer) -> list[Asked]:
    """Every question with its prompt; prompts that are too long are refused or dropped, as the study says.

    Raises:
        UserError: a prompt and `max_new_tokens` together exceed the model's context (count and ids named); as
            `LanguageModel.check_lengths`.
    """
    asked = [ask(cell, dataset, model, question) for question in dataset.questions]
    if not isinstance(model, LanguageModel):
        return asked
    fitting = _fitting(cell, asked, model.context)
    model.check_lengths([a.prompt for a in fitting], cell.sampling.length(cell.style))
    return fitting


def look(cell: Cell, dataset: Dataset, model: LanguageModel | None, n: int) -> list[str]:
    """What the model will read for the first n questions, in words: ids, special tokens, where it stops."""
    shown = []
    captured = ", where activations are captured" if LAST_PROMPT_TOKEN in cell.capture.positions else ""
    for question in dataset.questions[:n]:
        if model is None:  # a server keeps its tokenizer to itself
            text = form_of(cell).text(dataset, question, _no_template)
            shown.append(f"{question.id} · token ids are known to the server only\n{text}")
            continue
        asked = ask(cell, dataset, model, question)
        ids, tokenizer = asked.prompt.ids, model.tokenizer
        begins = sum(i == tokenizer.bos_token_id for i in ids)
        facts = [
            f"{len(ids)} tokens of {model.context - cell.sampling.length(cell.style)} that fit",
            f"{begins} × {tokenizer.bos_token}" if tokenizer.bos_token_id is not None else "no BOS token",
            f"last token {tokenizer.convert_ids_to_tokens(ids[-1])!r}{captured}",
            f"stops at {', '.join(map(repr, stop_strings(cell, model))) or 'its end-of-sequence token'}",
            f"gold {question.answers[0]!r}",
        ]
        if tokens := asked.question_tokens:
            span = tokenizer.convert_ids_to_tokens([ids[tokens[0]], ids[tokens[-1]]])
            facts.append(f"question {span[0]!r} to {span[1]!r}, tokens {tokens[0]} to {tokens[-1]}")
        shown.append(f"{question.id} · {' · '.join(facts)}\n{tokenizer.decode(list(ids), skip_special_tokens=False)}")
    return shown


def _fitting(cell: Cell, asked: Sequence[Asked], context: int) -> list[Asked]:
    room = context - cell.sampling.length(cell.style)
    if room < 1:
        raise UserError(
            f"{cell.label}: max_new_tokens is {context - room}, but the model's context is only {context} tokens; "
            "lower max_new_tokens"
        )
    long = [a for a in asked if len(a.prompt.ids) > room]
    if not long:
        return list(asked)
    names = ", ".join(a.question.id for a in long[:5]) + (", ..." if len(long) > 5 else "")
    longest = max(len(a.prompt.ids) for a in long)
    what = (
        f"{cell.label}: {len(long)} of {len(asked)} prompts ({names}) are longer than {room} tokens, the context of "
        f"{context} minus max_new_tokens {context - room} (longest {longest})"
    )
    kept = [a for a in asked if len(a.prompt.ids) <= room]
    if cell.on_long_prompt == "refuse":
        raise UserError(f"{what}; lower prompting.shots or max_new_tokens, or set on_long_prompt: drop")
    if not kept:
        raise UserError(f"{what}; dropping them leaves no question")
    log.warning("%s; dropped", what)
    return kept
