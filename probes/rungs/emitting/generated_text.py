"""What the generative rung reads and emits, as token ids: prompts with or without exemplars, and the texts of classes.

A class is written after what stands between a prompt and an answer: as answers write it most often, for a model must
learn every letter that it would not have written ("Gmail" for the label "gmail"), or as its label; "(unparsed)",
"(unexplored)" and "(other)" as their labels, too, or as another text where the tokenizer cannot write them. Any text
will do that no other class has: q stays a distribution over strings. It is encoded by itself, control tokens in it as
text, so that its token ids are the same after every prompt. The end mark is what ends an answer in such a prompt: a
model can hardly learn to write a token that its training never showed, as the end-of-sequence token of a base model may
be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from probes.targets.closed import OTHER
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import SEPARATOR, Form, few_shot
from semcal.questions.question import Dataset, Question
from semcal.questions.wording import normalise
from semcal.sampling.decoding.decoders import plain_pass
from semcal.semantics.class_table import UNEXPLORED, UNPARSED

_ASKED, _ANSWERED = "Qwxq", "Vzxv"  # words that no chat template writes
_LOOKED_AT = 8  # classes
# Classes that are no answer, and what they are written as where a small vocabulary lacks their label.
_DOTS = tuple(" ".join("." * n) for n in range(1, 9))
_NO_ANSWER = {label: (label.strip("()"), "none", "-", *_DOTS) for label in (UNPARSED, UNEXPLORED, OTHER)}


@dataclass(frozen=True)
class ClassTexts:
    """What is emitted for each class. No class holds the end mark, so none with its mark begins another, and the
    probabilities of all strings sum to at most 1.

    Attributes:
        ids: [class] token ids, without the end mark.
        end: token id of the end mark.
    """

    ids: tuple[tuple[int, ...], ...]
    end: int


def usual_texts(labels: Sequence[str], answers: Mapping[str, float]) -> dict[str, str]:
    """Label -> the answering phrase that is given most often of those that read like the label.

    Labels that no phrase reads like are left out, and so are those that read alike.

    Args:
        answers: phrase -> how often it was given; ties go to the first in the order of the alphabet.
    """
    alike = Counter(map(normalise, labels))
    usual: dict[str, str] = {}
    for phrase in sorted(answers, key=lambda phrase: (-answers[phrase], phrase)):
        usual.setdefault(normalise(phrase), phrase)
    return {label: usual[key] for label in labels if (key := normalise(label)) in usual and alike[key] == 1}


def class_texts(
    model: LanguageModel, labels: Sequence[str], form: Form, usual: Mapping[str, str] = MappingProxyType({})
) -> ClassTexts:
    """The texts of some classes after prompts of a form.

    Args:
        usual: label -> the text that stands for it, where that is not the label; it yields to a text that the
            tokenizer can write and no other class has.

    Raises:
        UserError: a label that the tokenizer cannot encode, or two with the same token ids; a tokenizer without an
            end-of-sequence token.
    """
    lead, last = answer_lead(model, form), _last(model)
    found: dict[tuple[int, ...], str] = {}
    for label in sorted(labels, key=lambda label: label in _NO_ANSWER):  # theirs may be any text that is still free
        texts = [*([usual[label]] if label in usual else []), label, *_NO_ANSWER.get(label, ())]
        spelled = [_encoded(model, lead + text, last) for text in texts]
        ids = next((ids for ids in spelled if ids and ids not in found), next(filter(None, spelled), ()))
        if not ids:
            raise UserError(
                f"{model.path}: its tokenizer cannot encode the class {label!r}; rename the class by a B of your own, "
                "or leave the generative probe out"
            )
        if ids in found:
            raise UserError(
                f"{model.path}: its tokenizer encodes the classes {found[ids]!r} and {label!r} alike; make them one "
                "class by a B of your own, or leave the generative probe out"
            )
        found[ids] = label
    written = {label: ids for ids, label in found.items()}
    return ClassTexts(tuple(written[label] for label in labels), likeliest_end(model, found, form))


def _encoded(model: LanguageModel, text: str, last: int) -> tuple[int, ...]:
    """The token ids of a text; none where the tokenizer cannot write it, or it holds the end-of-sequence token."""
    ids = model.encode_rendered(text, [(0, len(text))]) if text.strip() else ()
    return () if model.tokenizer.unk_token_id in ids or last in ids else tuple(ids)


def _last(model: LanguageModel) -> int:
    """The end-of-sequence token, which is in no text."""
    if not model.eos_ids:
        raise UserError(f"{model.path} has no end-of-sequence token to end a class with; set tokenizer.eos_token")
    own = model.tokenizer.eos_token_id
    return own if isinstance(own, int) else min(model.eos_ids)


def likeliest_end(model: LanguageModel, found: Collection[tuple[int, ...]], form: Form) -> int:
    """What the model itself likeliest writes after an answer, of what may end one and is in none of those found.

    Raises:
        UserError: a tokenizer without an end-of-sequence token.
    """
    last = _last(model)
    if form.rendered:
        return last
    word, ends = model.encode_rendered(_ANSWERED), {last}
    for text in (SEPARATOR, SEPARATOR[:1]):
        ended = model.encode_rendered(_ANSWERED + text)
        after = ended[len(word) : len(word) + 1] if ended[: len(word)] == word else ()
        ends.update(token for token in after if token != model.tokenizer.unk_token_id)
    open_ends = sorted(ends - {token for ids in found for token in ids})
    prompt = model.encode(few_shot(Question("end", _ASKED, (_ANSWERED,)), (), form.style, 0, 0))
    some = list(found)[:: max(1, len(found) // _LOOKED_AT)]
    logits = torch.stack([plain_pass(model.model, [(*prompt, *ids)], model.device)[0, -1] for ids in some])
    return open_ends[int(logits.float().log_softmax(1).mean(0)[open_ends].argmax())]


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
