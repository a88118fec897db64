"""Prompts: exemplars in the style asked for, drawn by seed, the question last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semcal import Question, UserError
from semcal.questions.pool import pool
from semcal.questions.prompts import SENTENCES, FewShot, asked, chat, exemplars_for, few_shot, options, written
from semcal.questions.question import STYLES, Dataset
from semcal.semantics.extract import extract

EXEMPLARS = [
    Question(id=f"e{i}", text=f"What is {i}?", answers=(f"A{i}",), worked={"cot": f"It is A{i}. The answer is A{i}."})
    for i in range(6)
]
ASKED = Question(id="q", text="What is x?", answers=("y",))


@pytest.mark.parametrize(
    ("style", "shown"), [("concise", "Answer: A"), ("sentence", "answer is A"), ("cot", "Answer: It is A")]
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
    with pytest.raises(UserError, match="shots is 7, but there are only 6 exemplars; lower shots"):
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
    assert written(CHOICE, "concise", 0) == "B) red"
    assert written(CHOICE, "sentence", None) == written(CHOICE, "cot", 0) == "The answer is B) red."
    assert written(replace(CHOICE, worked={"cot": "So B."}), "cot", 0) == "So B."


def test_sentences_vary_with_question_and_seed_and_are_all_read_as_the_answer():
    questions = [replace(ASKED, id=f"q{i}", answers=("J. R. R. Tolkien is it",)) for i in range(60)]
    shown = [written(q, "sentence", 0) for q in questions]
    assert len(set(shown)) == len(SENTENCES) >= 4
    assert {extract(text, "sentence") for text in shown} == {"J. R. R. Tolkien is it"}
    assert shown == [written(q, "sentence", 0) for q in questions]
    assert shown != [written(q, "sentence", 1) for q in questions]
    assert {written(q, "sentence", None) for q in questions} == {"The answer is J. R. R. Tolkien is it."}


def test_gold_is_shown_in_its_natural_form_and_a_continuation_as_the_author_wrote_it():
    muse = replace(ASKED, answers=("THALIA", "Thalia"))
    assert written(muse, "concise", 0) == "Thalia"
    assert written(muse, "continuation", 0) == "THALIA"


def test_a_chain_of_thought_is_not_made_up():
    assert written(ASKED, "cot", 0) == ""
    with pytest.raises(UserError, match="'q' has no worked solution in style 'cot'"):
        few_shot(CHOICE, [ASKED], "cot", 1, 0)


def test_a_dataset_without_chains_of_thought_shows_those_of_the_pool():
    sentences = replace(ASKED, id="e", worked={"sentence": "y it is, for the answer is y."})
    dataset = Dataset("d", (ASKED,), (sentences, *EXEMPLARS[:2]))
    assert exemplars_for(dataset, "sentence") == dataset.exemplars
    assert exemplars_for(dataset, "cot") == tuple(EXEMPLARS[:2])
    assert exemplars_for(replace(dataset, exemplars=(sentences,)), "cot") == pool()
    assert exemplars_for(replace(dataset, exemplars=(CHOICE,)), "cot") == (CHOICE,)


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_with_the_pool_is_written_in_the_style(style):
    text = FewShot(style, shots=4, seed=0).text(Dataset("d", (ASKED,), pool()), ASKED, str)
    shown = [q for q in pool() if q.text in text]
    assert len(shown) == 4
    assert all(f"Answer: {q.worked[style]}\n" in text for q in shown)
    with pytest.raises(UserError, match="shots is 29, but there are only 28 exemplars; lower shots"):
        FewShot(style, shots=29, seed=0).text(Dataset("d", (ASKED,), pool()), ASKED, str)


@pytest.mark.parametrize("style", STYLES)
def test_chat_asks_for_the_letter_where_there_are_options(style):
    assert "letter" in chat(CHOICE, style)[0]["content"]
    assert "B) red" in chat(CHOICE, style)[0]["content"]
    assert "letter" not in chat(ASKED, style)[0]["content"]
