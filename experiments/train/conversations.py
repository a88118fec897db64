"""Conversations to train on: a question, the style to answer in, and the answer, as a chat template writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semcal.errors import UserError
from semcal.questions.prompts import chat
from semcal.questions.question import Question

if TYPE_CHECKING:  # torch takes seconds
    from semcal.models.checkpoint import LanguageModel

# The chat template of a model that has none, "<s>Question: QUESTION\nINSTRUCTION\nAnswer: ANSWER</s>": roles are named
# as in few-shot prompts, so that the vocabulary stays and a base model can read it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'Answer: ' if message['role'] == 'assistant' else 'Question: ' }}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{{ 'Answer:' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True)
class Turn:
    """One conversation: a question, the style to answer in, and the gold answer as text."""

    question: Question
    style: str
    answer: str

    @property
    def key(self) -> str:
        """Unique among the turns of a dataset."""
        return f"{self.question.id}/{self.style}"

    @property
    def prompt(self) -> list[dict[str, str]]:
        return chat(self.question, self.style)

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*self.prompt, {"role": "assistant", "content": self.answer}]


def labelled(model: LanguageModel, turn: Turn) -> dict[str, Any]:
    """Token ids of a turn and labels, which are -100 where there is no loss: it covers the answer and what ends it.

    What a template writes after the end of the answer is left out; an end that it does not write is added.

    Raises:
        UserError: the answer does not simply follow the prompt.
    """
    prompt = model.encode_rendered(model.render_chat(turn.prompt))
    whole = model.encode_rendered(model.render_chat(turn.messages, answered=True))
    answer = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt or not answer:
        raise UserError(
            f"{model.path}: with its chat template the answer to {turn.question.id!r} does not follow the prompt token "
            "by token, so there is nothing to train on; use a base model, or replace its template"
        )
    end = next((i for i, token in enumerate(answer) if token in model.eos_ids), None)
    answer = (*answer, min(model.eos_ids)) if end is None else answer[: end + 1]
    return {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)}
