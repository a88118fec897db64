"""Prompts: exemplars in the style asked for, drawn by seed, the question last."""

from __future__ import annotations

import pytest

from semcal import Question
from semcal.questions.prompts import chat, few_shot

EXEMPLARS = [
    Question(id=f"e{i}", text=f"What is {i}?", answers=(f"A{i}",), worked={"cot": f"It is A{i}. The answer is A{i}."})
    for i in range(6)
]
ASKED = Question(id="q", text="What is x?", answers=("y",))


@pytest.mark.parametrize(
    ("style", "shown"), [("concise", "Answer: A"), ("sentence", "Answer: The answer is A"), ("cot", "Answer: It is A")]
)
def test_exemplars_answer_in_the_style(style, shown):
    text = few_shot(ASKED, EXEMPLARS, style, shots=3, seed=0)
    assert text.count(shown) == 3
    assert text.count("Question: ") == 4
    assert text.endswith("Question: What is x?\nAnswer:")


def test_exemplars_vary_with_question_and_seed_and_never_repeat():
    one = few_shot(ASKED, EXEMPLARS, "concise", shots=6, seed=0)
    assert all(one.count(e.text) == 1 for e in EXEMPLARS)
    other = Question(id="r", text="What is x?", answers=("y",))
    assert few_shot(ASKED, EXEMPLARS, "concise", 4, 0) == few_shot(ASKED, EXEMPLARS, "concise", 4, 0)
    assert few_shot(other, EXEMPLARS, "concise", 4, 0) != few_shot(ASKED, EXEMPLARS, "concise", 4, 0)
    assert few_shot(ASKED, EXEMPLARS, "concise", 4, 1) != few_shot(ASKED, EXEMPLARS, "concise", 4, 0)
    assert few_shot(ASKED, [], "concise", 0, 0) == "Question: What is x?\nAnswer:"
    with pytest.raises(ValueError, match="7 shots"):
        few_shot(ASKED, EXEMPLARS, "concise", 7, 0)


def test_chat_carries_the_instruction_of_the_style():
    (message,) = chat(ASKED, "cot")
    assert message["role"] == "user"
    assert "step by step" in message["content"]
    assert message["content"].startswith(ASKED.text)


def test_options_are_shown():
    asked = Question(id="m", text="Which?", answers=("red",), choices=("red", "blue"))
    assert few_shot(asked, [], "concise", 0, 0) == "Question: Which? Options: red; blue.\nAnswer:"
    assert "Options: red; blue." in chat(asked, "concise")[0]["content"]
