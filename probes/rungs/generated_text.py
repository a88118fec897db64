"""What the generative rung reads and emits, as token ids: prompts with or without exemplars, and the texts of classes.

A class is written as its label, "(unparsed)", "(unexplored)" and "(other)" included, after what stands between a prompt
and an answer (`lead`). It is encoded by itself, control tokens in it as text, so that its token ids are the same after
every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import Form, few_shot
from semcal.questions.question import Dataset, Question

_ASKED, _ANSWERED = "Qwxq", "Vzxv"  # words that no chat template writes


def class_ids(model: LanguageModel, labels: Sequence[str], *, lead: str = " ") -> list[tuple[int, ...]]:
    """[class] the token ids that a class is emitted as, without the end mark.

    Args:
        labels: [class], which differ.
        lead: what stands between a prompt and an answer (`answer_lead`).

    Raises:
        UserError: a label that the tokenizer cannot encode, or two with the same token ids.
    """
    unknown = model.tokenizer.unk_token_id
    found: dict[tuple[int, ...], str] = {}
    for label in labels:
        text = lead + label
        ids = model.encode_rendered(text, [(0, len(text))])
        if not label.strip() or not ids or unknown in ids or model.eos_ids.intersection(ids):
            raise UserError(
                f"{model.path}: its tokenizer cannot encode the class {label!r}; rename the class (semantics.aliases, "
                "or a B of your own), or leave the generative probe out"
            )
        if ids in found:
            raise UserError(
                f"{model.path}: its tokenizer encodes the classes {found[ids]!r} and {label!r} alike; make them one "
                "class, or rename one (semantics.aliases, or a B of your own)"
            )
        found[ids] = label
    return list(found)


def answer_lead(model: LanguageModel, form: Form) -> str:
    """What stands between a prompt of this form and an answer: a space, or what the chat template writes there."""
    if not form.rendered:
        return " "
    question = Question("lead", _ASKED, (_ANSWERED,))
    prompt = form.text(Dataset("", ()), question, model.render_chat)
    whole = form.answered(question, prompt, _ANSWERED, partial(model.render_chat, answered=True))
    return whole[len(prompt) :].partition(_ANSWERED)[0]


def prompts_without_exemplars(
    model: LanguageModel, form: Form, questions: Sequence[Question], prompts: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """The prompts of a run, of few-shot prompts the last question alone; the adapter learns the format.

    Args:
        form: of the run's prompts. Chats keep their template, continuations their text.
        questions, prompts: [question], the run's, in one order.
    """
    if form.rendered or not form.shots:
        return [tuple(prompt) for prompt in prompts]
    return [model.encode(few_shot(question, (), form.style, 0, form.seed)) for question in questions]
