"""Prompts: exemplars in the style asked for, drawn by seed, the question last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semcal import Question
from semcal.questions.prompts import asked, chat, few_shot, options, written
from semcal.questions.question import STYLES

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


CHOICE = Question(id="m", text="Which?", answers=("red",), choices=("blue", "red", "green"))


def test_options_are_lettered_each_on_its_own_line():
    shown = "Which?\nA) blue\nB) red\nC) green"
    assert few_shot(ASKED, [CHOICE], "concise", 1, 0).startswith(f"Question: {shown}\nAnswer: B) red\n\n")
    assert few_shot(CHOICE, [], "concise", 0, 0) == f"Question: {shown}\nAnswer:"
    assert options(CHOICE) == {"A": "blue", "B": "red", "C": "green"}
    assert asked(ASKED) == "What is x?"


def test_the_gold_option_is_written_with_its_letter_in_every_style():
    assert [written(CHOICE, style) for style in ("concise", "sentence")] == ["B) red", "The answer is B) red."]
    assert written(CHOICE, "cot").endswith("The answer is B) red.")
    assert written(replace(CHOICE, worked={"cot": "So B."}), "cot") == "So B."


@pytest.mark.parametrize("style", STYLES)
def test_chat_asks_for_the_letter_where_there_are_options(style):
    assert "letter" in chat(CHOICE, style)[0]["content"]
    assert "B) red" in chat(CHOICE, style)[0]["content"]
    assert "letter" not in chat(ASKED, style)[0]["content"]
