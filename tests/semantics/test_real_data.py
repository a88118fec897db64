"""B on the whole of the real files: what it reads, what it joins, what it keeps apart. Rates are printed."""

from __future__ import annotations

import re
import string

import numpy as np
import pytest

from semcal.questions.alias_lists import gold_lists
from semcal.questions.load_dataset import build
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.prompts import written
from semcal.questions.wording import normalise
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.exact_match import Choice, ExactMatch
from semcal.semantics.collapsing.numeric import Numeric
from tests.conftest import data_folder, needs

FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "math500": "math500/test.jsonl",
    "openmathinstruct2": "openmathinstruct2_sample/openmathinstruct2.test",
    "triviaqa": "triviaqa/TriviaQA.csv",
    "simpleqa": "simpleqa/simple_qa_test_set.csv",
    "simpleqa-verified": "simpleqa/simpleqa_verified.csv",
    "truthfulqa": "truthfulqa/TruthfulQA.csv",
    "truthfulqa-mc": "truthfulqa/TruthfulQA.csv",
    "nq-open": "nq_open/NQ-open.dev.jsonl",
    "popqa": "popqa/popqa_1000.jsonl",
}
B = {"exact": ExactMatch(), "numeric": Numeric(), "choice": Choice()}


def whole(kind):
    questions = read_named(kind, needs(data_folder() / FILES[kind]))
    return build(kind, questions, n=None, exemplars=0, seed=0).questions


@pytest.mark.long
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("style", ["concise", "sentence", "cot"])
def test_gold_written_in_a_style_is_in_a_gold_class_of_the_datasets_own_b(kind, style):
    questions = [q for q in whole(kind) if written(q, style, 0)]
    if not questions:
        pytest.skip("no one knows how its gold answers would be written in this style")
    b = B[NAMED[kind].semantics or "exact"]
    found = collapse_blind(b, questions, [[" " + written(q, style, 0)] for q in questions], style)
    missed = [
        (q.id, q.answers[0], f.classes[0]) for q, f in zip(questions, found, strict=True) if f.classes[0] not in f.gold
    ]
    print(f"{kind} {style}: {1 - len(missed) / len(questions):.2%} of {len(questions)} gold answers read")  # noqa: T201
    assert len(missed) <= 0.005 * len(questions), missed[:20]


def test_aliases_of_one_trivia_question_are_one_class_and_those_of_two_are_not():
    questions = [q for q in whole("triviaqa") if len(q.answers) > 1]
    rng = np.random.default_rng(0)
    b = ExactMatch(pooled=pooled(gold_lists(questions)))
    together = apart = 0
    for _ in range(2000):
        one, other = (questions[i] for i in rng.choice(len(questions), 2, replace=False))
        a, twin = (one.answers[i] for i in rng.choice(len(one.answers), 2, replace=False))
        stranger = other.answers[rng.integers(len(other.answers))]
        (found,) = collapse_blind(b, [one], [[a, twin, stranger]], "concise")
        together += found.classes[0] == found.classes[1]
        apart += found.classes[0] != found.classes[2]
    print(f"TriviaQA: {together / 2000:.2%} of pairs of aliases together, {apart / 2000:.2%} of strangers apart")  # noqa: T201
    assert together >= 0.99 * 2000  # a form that several entities list is joined to none of them
    assert apart >= 0.995 * 2000


def test_what_exact_match_of_one_alias_loses_where_the_list_is_not_known():
    """A user's questions seldom come with aliases: how often two of them are one class by normalisation alone."""
    from dataclasses import replace

    questions = [q for q in whole("triviaqa") if len(q.answers) > 1]
    bare = [replace(q, answers=q.answers[:1]) for q in questions]
    found = collapse_blind(ExactMatch(), bare, [q.answers[1:2] for q in questions], "concise")
    share = np.mean([f.classes[0] in f.gold for f in found])
    print(f"TriviaQA: {share:.1%} of second aliases are the first one by normalisation alone")  # noqa: T201
    assert 0 < share < 0.5


def test_truthfulqa_knows_what_is_wrong():
    questions = whole("truthfulqa")  # by exact match, which a study refuses, but which shows what the file says
    found = collapse_blind(ExactMatch(), questions, [q.incorrect for q in questions], "concise")
    wrong = [k in f.gold for f in found for k in f.classes]
    print(f"TruthfulQA: {np.mean(wrong):.2%} of {len(wrong)} incorrect answers are in a correct class")  # noqa: T201
    assert np.mean(wrong) < 0.005


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´")


def version_3(text):
    """The normal form of `exact/3`: SQuAD's."""
    lowered = " ".join(text.lower().split())
    return " ".join(_ARTICLES.sub(" ", lowered.translate(_PUNCTUATION)).split()) or lowered


def classes(forms, form_of):
    """Normal form -> the forms that have it."""
    found = {}
    for form in sorted(forms):
        found.setdefault(form_of(form), set()).add(form)
    return found


@pytest.mark.long
@pytest.mark.parametrize("kind", ["triviaqa", "simpleqa", "nq-open", "popqa"])
def test_version_4_of_exact_match_changes_few_classes(kind):
    questions = whole(kind)
    own = {q.id: {form for forms in (q.answers, *q.others) for form in forms} for q in questions}
    forms = set().union(*own.values())
    parted, merged = (
        sum(len({finer(f) for f in cell}) > 1 for cell in classes(forms, coarser).values())
        for coarser, finer in ((version_3, normalise), (normalise, version_3))
    )
    asked = sum(
        sorted(classes(f, version_3).values(), key=sorted) != sorted(classes(f, normalise).values(), key=sorted)
        for f in own.values()
    )
    print(f"{kind}: of {len(forms)} forms, {parted} classes of version 3 are parted, {merged} of version 4 are merged;")  # noqa: T201
    print(f"{asked} of {len(questions)} questions have gold forms that are parted or merged")  # noqa: T201
    assert parted + merged < 0.005 * len(forms)
