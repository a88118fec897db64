"""Collapsing answers: exact match and numeric B against what one would otherwise run on every single answer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from experiments.bench.timing import Case, side_by_side
from semcal.questions.question import Question
from semcal.questions.wording import normalise
from semcal.semantics.collapsing.collapse import Collapse, Collapsed, collapse_blind
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.collapsing.numeric import Numeric, read
from semcal.semantics.extract import extract

QUESTIONS, M = 3610, 50  # as many as TriviaQA's subset of that size
THEIRS_QUESTIONS = 40  # timed and scaled; each repeat takes the next ones
_WORDS = "river stone north harbour king silver maple station garden eagle winter bridge"
_FORMS = (
    "{a}",
    "{a}.0",
    r"\frac{{{a}}}{{{b}}}",
    "{a}/{b}",
    r"{a}\text{{ km}}",
    r"{b}\sqrt{{{a}}}",
    "x^2 + {a}x",
    "-{a}",
)


def semantics_cases(device: str = "auto") -> Iterator[Case]:  # noqa: ARG001 - the signature of all benches
    """Cases `exact/3610x50` and `numeric/3610x50`; our seconds are for all of them."""
    words = _answers(lambda rng: " ".join(rng.choice(_WORDS.split(), 2)).title())
    numbers = _answers(lambda rng: rng.choice(_FORMS).format(a=rng.integers(2, 30), b=rng.integers(2, 9)))
    yield _case("exact/3610x50", ExactMatch(), words, _match_by_words)
    yield _case("numeric/3610x50", Numeric(), numbers, _match_by_math_verify)


def _case(
    name: str, collapse: Collapse, answered: tuple[list[Question], list[list[str]]], match: Callable[[str, str], bool]
) -> Case:
    questions, texts = answered
    turns = cycle(zip(questions, texts, strict=True))

    def ours() -> list[Collapsed]:
        read.cache_clear()
        normalise.cache_clear()
        return collapse_blind(collapse, questions, texts, "cot")

    def theirs() -> list[bool]:
        some = islice(turns, THEIRS_QUESTIONS)
        return [match(question.answers[0], text) for question, answers in some for text in answers]

    found = ours()[:THEIRS_QUESTIONS]
    agree = np.mean([a == b for a, b in zip([k in f.gold for f in found for k in f.classes], theirs(), strict=True)])
    assert agree > 0.97, f"{name}: the two agree on only {agree:.1%} of the answers"
    case = side_by_side(name, ours, theirs, scale=QUESTIONS / THEIRS_QUESTIONS)
    return replace(case, facts={"answers": QUESTIONS * M, "agree": float(agree)})


def _match_by_words(gold: str, text: str) -> bool:
    return normalise.__wrapped__(extract(text, "cot") or "") == normalise.__wrapped__(gold)


def _match_by_math_verify(gold: str, text: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"${gold}$"), parse(f"${extract(text, 'cot')}$"))


def _answers(draw) -> tuple[list[Question], list[list[str]]]:
    """Questions with 50 answers each, the likeliest of which is drawn half of the time."""
    rng = np.random.default_rng(0)
    questions, texts = [], []
    for number in range(QUESTIONS):
        options = [draw(rng) for _ in range(20)]
        questions.append(Question(id=str(number), text="?", answers=(options[0],)))
        chosen = rng.choice(20, M, p=[0.5] + [0.5 / 19] * 19)
        texts.append(
            [
                f"Let us see. The answer is ${options[i]}$." if "\\" in options[i] else f"The answer is {options[i]}."
                for i in chosen
            ]
        )
    return questions, texts
