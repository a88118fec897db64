"""Our own exemplars: their forms are read as their answers, vary, and hold a chain that is one."""

import pytest

from semcal.questions.load_dataset import build
from semcal.questions.pool import pool
from semcal.questions.prompts import STOPS
from semcal.questions.question import Question
from semcal.questions.wording import normalise
from semcal.semantics.before_answer import MIN_WORDS
from semcal.semantics.extract import extract, locate


def test_the_pool_holds_28_distinct_questions_of_general_knowledge():
    questions = pool()
    assert len(questions) == 28
    assert len({normalise(q.text) for q in questions}) == len({q.id for q in questions}) == 28
    assert all(q.text.endswith("?") for q in questions)


@pytest.mark.parametrize("question", pool(), ids=lambda q: q.id)
def test_every_form_is_read_as_the_concise_answer(question):
    assert question.worked["concise"] == question.answers[0]
    for style in ("concise", "sentence", "cot"):
        found = extract(question.worked[style], style)
        assert found is not None
        assert normalise(found) == normalise(question.answers[0]), style


@pytest.mark.parametrize("question", pool(), ids=lambda q: q.id)
def test_a_chain_has_two_to_five_steps_and_states_the_answer_once_at_its_end(question):
    chain = question.worked["cot"]
    found = locate(chain, "cot")
    assert found is not None
    *steps, last = chain.split("\n")
    assert last.startswith("The answer is ")
    assert 2 <= len(steps) <= 5
    assert all(len(step.split()) >= 4 for step in steps)
    assert chain.count("answer is") == 1
    assert STOPS["cot"][0] not in chain
    assert len(chain[: found[0]].split()) > 4 * MIN_WORDS


def test_sentences_vary_in_form():
    sentences = [q.worked["sentence"] for q in pool()]
    assert not any("answer" in s for s in sentences)
    assert len({" ".join(s.split()[:2]) for s in sentences}) >= 20  # no opening recurs often
    assert all(s.count(".") == 1 and s.endswith(".") for s in sentences)


def test_a_question_of_the_pool_that_is_evaluated_is_not_shown():
    asked, *others = pool()
    mine = [
        Question(id="mine", text=f"  {asked.text.upper()}", answers=asked.answers),  # the same but for case and spaces
        Question(id="other", text="Who painted the ceiling of our town hall?", answers=("Ada",)),
    ]
    dataset = build("mine", mine, n=None, exemplars=4, seed=0)
    assert {q.id for q in dataset.questions} == {"mine", "other"}
    assert dataset.exemplars == tuple(others)
    alone = build("mine", mine, n=1, exemplars=4, seed=0)
    (evaluated,) = alone.questions
    assert (asked in alone.exemplars) == (evaluated.id == "other")  # only what is evaluated counts
