"""Our own exemplars: their forms are read as their answers, vary, and hold a chain that is one."""

import pytest

from semcal.questions.pool import pool
from semcal.questions.prompts import STOPS
from semcal.semantics.before_answer import MIN_WORDS
from semcal.semantics.extract import extract, locate, normalise


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
