"""Atlas in conversations: the chat template of the tuned models, and questions and answers that are fit for it.

The vocabulary stays that of the base model: roles are plain words, and an answer ends with </s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.atlas.text import FAMILIES, thought
from experiments.atlas.world import World
from experiments.atlas.world_questions import question_about
from semcal.questions.prompts import TEMPLATES, chat
from semcal.questions.question import STYLES, Question

# "<s>Question: QUESTION\nINSTRUCTION\nAnswer: ANSWER</s>": the roles are called what the base already knows them by.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'Answer: ' if message['role'] == 'assistant' else 'Question: ' }}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{{ 'Answer:' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True)
class Turn:
    """One conversation.

    Attributes:
        question: What is asked; its gold answer is drawn as training text draws it.
        style: How it is to be answered.
        answer: The gold answer, cleanly written.
    """

    question: Question
    style: str
    answer: str

    @property
    def asked(self) -> list[dict[str, str]]:
        return chat(self.question, self.style)

    @property
    def whole(self) -> list[dict[str, str]]:
        return [*self.asked, {"role": "assistant", "content": self.answer}]


def draw_turn(
    world: World,
    rng: np.random.Generator,
    *,
    families: Sequence[str] = FAMILIES,
    styles: Sequence[str] = STYLES,
    strangers: bool = True,
) -> Turn:
    """One conversation about what people ask, as often as they ask it.

    The answer is cleaner than that of training text: canonical names only, one wording a style, that which the
    instruction asks for. Which class it names is drawn from the same distribution, so that cross-entropy on it still
    is a proper loss for what is true. `strangers=False` leaves out persons who are hardly ever written about.
    """
    family, style = families[int(rng.integers(len(families)))], styles[int(rng.integers(len(styles)))]
    query = world.draw_fact(rng, strangers=strangers) if family == "facts" else world.draw_route(rng)
    label = world.draw_answer(query, rng)
    answer = {
        "concise": label,
        "sentence": TEMPLATES["sentence"].format(answer=label),
        "cot": f"{thought(world, query, label)} The answer is {label}.",
    }
    return Turn(question_about(world, query, label), style, answer[style])
