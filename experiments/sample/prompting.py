"""From questions to token ids: exactly what a model reads."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from experiments.config.study import Cell
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, QUESTION_POSITIONS
from semcal.questions.prompts import STOPS, Messages, chat, few_shot, question_span, written
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.sampling.records import Prompt

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel

Answerer: TypeAlias = "LanguageModel | ServedModel"
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


# ---- the forms of a prompt -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How the prompts of a cell are written, encoded and ended; see `form_of`.

    Attributes:
        rendered: Whether a chat template writes the prompt, special tokens included.
    """

    cell: Cell
    rendered: ClassVar[bool] = False

    @property
    def endless(self) -> bool:
        """Whether an answer may run to its token limit, however short the gold answer is."""
        return False

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer unless the study sets its own."""
        return STOPS[self.cell.style]

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:
        """The prompt as text; `render` applies a chat template to messages."""
        raise NotImplementedError

    def encode(self, model: LanguageModel, text: str) -> tuple[int, ...]:
        """The token ids of a prompt."""
        return model.encode_rendered(text) if self.rendered else model.encode(text)

    def answered(self, model: LanguageModel, asked: Asked, answer: str) -> str:  # noqa: ARG002
        """A prompt followed by an answer, as the model would have written it."""
        return f"{asked.text} {answer}"


class FewShot(Form):
    """Exemplars in the style of the cell, then the question: for base models."""

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        prompting = self.cell.prompting
        shots, seed = prompting.shots, self.cell.seed
        return few_shot(question, dataset.exemplars, self.cell.style, shots, seed, vary=prompting.vary)


class Chat(Form):
    """The question and an instruction in a chat template: for tuned models, which end by themselves."""

    rendered = True

    @property
    def endless(self) -> bool:
        return self.cell.style == "cot"

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        return render(chat(question, self.cell.style))

    def answered(self, model: LanguageModel, asked: Asked, answer: str) -> str:
        turn = {"role": "assistant", "content": answer}
        whole = model.render_chat([*chat(asked.question, self.cell.style), turn], answered=True)
        shown = whole.startswith(asked.text) and answer in whole
        # A template may write something, such as a space, between the prompt and the first word of an answer.
        lead = whole[len(asked.text) :].partition(answer)[0] if shown else ""
        return asked.text + lead + answer


class Continuation(Form):
    """A text to be continued, as it is."""

    @property
    def endless(self) -> bool:
        return True

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        return question.text


def form_of(cell: Cell) -> Form:
    """The form of a cell's prompts."""
    if cell.style == CONTINUATION:
        return Continuation(cell)
    return Chat(cell) if cell.model.prompt == "chat" else FewShot(cell)


# ---- the questions of a cell ---------------------------------------------------------------------------------------


def stop_strings(cell: Cell) -> tuple[str, ...]:
    """The stop strings that the study sets, or those of the cell's form of prompt."""
    return form_of(cell).stops if cell.sampling.stop is None else tuple(cell.sampling.stop)


def ask(cell: Cell, dataset: Dataset, model: Answerer, question: Question) -> Asked:
    """One question with its prompt.

    Raises:
        UserError: activations are to be captured at the question, and the chat template does not show it as it is.
    """
    form = form_of(cell)
    if not isinstance(model, LanguageModel):
        return Asked(question, form.text(dataset, question, _no_template), Prompt(question.id, ()))
    text = form.text(dataset, question, model.render_chat)
    prompt = Prompt(question.id, form.encode(model, text))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return Asked(question, text, prompt)
    try:
        start, stop = question_span(text, question, cell.style)
    except ValueError as error:
        raise UserError(f"{cell.label}: {error}; capture at last_prompt_token instead") from None
    return Asked(question, text, prompt, model.tokens_at(text, start, stop, rendered=form.rendered))


def _no_template(_: Messages) -> str:
    raise AssertionError("a served model has no chat template here; the configuration refuses prompt: chat for it")


def gold_ids(cell: Cell, model: Answerer, asked: Asked) -> tuple[int, ...]:
    """The token ids that the model would have to generate to write the gold answer as an exemplar shows it.

    The answer is encoded after its prompt, which decides how it begins. What ends an answer is not part of it. Empty
    for a served model, and where prompt and answer share a token, so that no answer begins like that.
    """
    if not isinstance(model, LanguageModel):
        return ()
    form = form_of(cell)
    whole = form.encode(model, form.answered(model, asked, written(asked.question, cell.style)))
    prompt = asked.prompt.ids
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


def ask_all(cell: Cell, dataset: Dataset, model: Answerer) -> list[Asked]:
    """Every question with its prompt; prompts that are too long are refused or dropped, as the study says.

    Raises:
        UserError: a prompt and `max_new_tokens` together exceed the model's context (count and ids named).
    """
    asked = [ask(cell, dataset, model, question) for question in dataset.questions]
    return _fitting(cell, asked, model.context) if isinstance(model, LanguageModel) else asked


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
            f"stops at {', '.join(map(repr, stop_strings(cell))) or 'its end-of-sequence token'}",
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
