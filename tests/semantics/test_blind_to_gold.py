"""No B sees gold: exchanging gold answers among questions changes no partition, and a calibrated model looks like one.

The simulation plants the truth: a model that is calibrated over entities and writes some of its answers in other forms.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcal import Question
from semcal.questions.alias_lists import gold_lists
from semcal.questions.question import BlindQuestion
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.clustered import Clustered, Embedding, Entailment
from semcal.semantics.collapsing.collapse import Pointwise, collapse_blind
from semcal.semantics.collapsing.custom import Custom, check_contract
from semcal.semantics.collapsing.exact_match import Choice, ExactMatch
from semcal.semantics.collapsing.judge import Decisions, Judge
from semcal.semantics.collapsing.numeric import Numeric
from semcal.semantics.collapsing.surface import KthWord, first_word, length

OPTIONS = ("Rome", "Paris", "7", "the old town")
FORMS = (
    "Rome",
    "Roma",
    "rome.",
    "Paris",
    "City of Light",
    "7",
    "7.0",
    "14/2",
    "x=7",
    "the old town",
    "A",
    "B) Paris",
    "",
)


def asked(number: int, *answers: str, incorrect=()) -> Question:
    return Question(f"q{number}", f"Question {number}?", answers, choices=OPTIONS, incorrect=incorrect)


QUESTIONS = (
    asked(0, "Rome", "Roma"),
    asked(1, "Paris", "City of Light", incorrect=("Rome",)),
    asked(2, "7", "14/2"),
    asked(3, "the old town"),
)


def entails(pairs):
    """Texts entail each other where their last words begin with the same letter."""
    return np.array([0.9 if a.split()[-1][:1].lower() == b.split()[-1][:1].lower() else 0.2 for a, b in pairs])


def embedded(texts):
    return np.array([[ord(t[0]) % 3 == k for k in range(3)] for t in texts], dtype=float)


def judged(prompts):
    for at, prompt in enumerate(prompts):
        if found := re.search(r"^Answer: (.*)$", prompt, re.MULTILINE):
            yield at, f'{{"answer": "{found[1]}"}}'
        else:
            first, second = re.findall(r"^(?:First|Second) answer: (.*)$", prompt, re.MULTILINE)
            yield at, f'{{"same": {str(first[0] == second[0]).lower()}}}'


class FirstWord(Pointwise):
    name = "first-word/1"

    def of_text(self, question, text, style):  # noqa: ARG002
        return first_word(text)

    def of_reference(self, question, answer):
        return self.of_text(question, answer, "")


class Length(FirstWord):
    name = "length/1"

    def of_text(self, question, text, style):  # noqa: ARG002
        return length(text)


def every_b(folder):
    table = pooled(gold_lists(QUESTIONS))
    return [
        ExactMatch(),
        ExactMatch(pooled=table),
        ExactMatch({"Rome": "r", "Roma": "r", "Paris": "p"}),
        Numeric(),
        Choice(),
        KthWord(1),
        KthWord(3),
        FirstWord(),
        Length(),
        Clustered(Entailment(entails, "stub"), table),
        Clustered(Embedding(embedded, "stub"), table),
        Clustered(Judge(judged, "stub", Decisions(folder / "judge.jsonl")), table, whole=True),
        Custom("b", lambda question, text, style: f"{question.id} {text[:2]} {style}" if text else None),
    ]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_exchanging_gold_among_questions_changes_no_partition_of_any_b(tmp_path_factory, data):
    texts = data.draw(st.lists(st.lists(st.sampled_from(FORMS), max_size=6), min_size=4, max_size=4))
    order = data.draw(st.permutations(range(4)))
    style = data.draw(st.sampled_from(["concise", "sentence", "cot"]))
    exchanged = [
        replace(q, answers=QUESTIONS[k].answers, incorrect=QUESTIONS[k].incorrect)
        for q, k in zip(QUESTIONS, order, strict=True)
    ]
    # The table is made from the questions, so it is part of what must not change.
    assert pooled(gold_lists(exchanged)) == pooled(gold_lists(QUESTIONS))
    for b in every_b(tmp_path_factory.mktemp("judge")):
        one, other = (collapse_blind(b, some, texts, style) for some in (QUESTIONS, exchanged))
        assert [c.classes for c in one] == [c.classes for c in other], b.name
        check_contract(b, QUESTIONS, texts, style)


def test_a_blind_question_holds_nothing_of_the_answer():
    assert {f.name for f in fields(BlindQuestion)} == {"id", "text", "group", "choices"}
    blind = replace(QUESTIONS[1], group="https://example.org/Paris").blind
    assert (blind.id, blind.text, blind.choices) == ("q1", "Question 1?", OPTIONS)
    assert "Paris" not in blind.group


# ---- planted truth -------------------------------------------------------------------------------------------------

N, M, CANDIDATES = 1500, 50, 6
OTHER_FORMS = (0.0, 0.1, 0.2, 0.4)  # share of answers that are not the first form of their list


def invented_lists(n, rng):
    return [(f"e{i}", *(f"e{i} alias{k}" for k in range(1 + rng.integers(12)))) for i in range(n)]


def answered(lists, share, rng):
    """Questions of a model that is calibrated over entities, [question] texts, and [question] the texts' entities.

    Each question has candidates, entities that the model gives a Dirichlet(1) distribution, of which gold is a draw.
    """
    questions, texts, entities = [], [], []
    for number in range(N):
        candidates = rng.choice(len(lists), CANDIDATES, replace=False)
        mass = rng.dirichlet(np.ones(CANDIDATES))
        gold = lists[rng.choice(candidates, p=mass)]
        said = rng.choice(candidates, M, p=mass)
        forms = [lists[e][rng.integers(1, len(lists[e]))] if rng.random() < share else lists[e][0] for e in said]
        questions.append(Question(id=str(number), text=f"Which is number {number}?", answers=gold))
        texts.append(forms)
        entities.append([lists[e][0] for e in said])
    return questions, texts, entities


def table_of(found, questions):
    classes = [c.classes for c in found]
    return ClassTable.of_answers(
        [q.id for q in questions],
        [q.id for q in questions],
        classes,
        [[1] * M] * len(questions),
        [c.gold for c in found],
    )


def gaps(lists, share, known, seed):
    """Signed gap under the pooled table; if a question's own gold is all that is known; and if the truth is known.

    Args:
        known: share of the entities that are gold of no question whose list is known all the same.
    """
    rng = np.random.default_rng(seed)
    questions, texts, entities = answered(lists, share, rng)
    gold = {q.answers for q in questions}
    table = pooled([*gold, *(own for own in lists if own not in gold and rng.random() < known)])
    blind = collapse_blind(ExactMatch(pooled=table), questions, texts, "concise")
    looking = [
        collapse_blind(ExactMatch(pooled=pooled([q.answers])), [q], [own], "concise")[0]
        for q, own in zip(questions, texts, strict=True)
    ]
    truth = collapse_blind(ExactMatch(), [replace(q, answers=q.answers[:1]) for q in questions], entities, "concise")
    pairs = [table_of(found, questions).by_count for found in (blind, looking, truth)]
    return [float(p.plug_in.mean() - p.correct.mean()) for p in pairs]


@pytest.mark.parametrize("share", OTHER_FORMS)
def test_a_calibrated_model_that_varies_its_wording_keeps_its_gap_where_nine_lists_of_ten_are_known(share):
    lists = invented_lists(6 * N, np.random.default_rng(1))
    blind, looking, truth = gaps(lists, share, 0.9, seed=2)
    print(f"{share:.0%} in other forms: blind {blind:+.3f}, gold's aliases alone {looking:+.3f}, truth {truth:+.3f}")  # noqa: T201
    assert abs(blind - truth) < 0.02
    assert share == 0 or looking < truth - 0.2 * share  # what it would be if B saw gold
