"""From a question to what the model reads: few-shot prompts for base models, chat messages for tuned ones.

Knows styles and wording; knows no tokenizer. The same instruction in words serves the chat template; base models get
exemplars written in the style instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from semcal.questions.question import CONTINUATION, Question
from semcal.seeds import keyed_generator

QUESTION, ANSWER, SEPARATOR = "Question: ", "Answer:", "\n\n"

# Where a question ships no answer written out in a style, the gold answer is put into these words.
TEMPLATES = {
    "concise": "{answer}",
    "sentence": "The answer is {answer}.",
    "cot": "Let us think step by step and recall what is known about this. The answer is {answer}.",
}
INSTRUCTIONS = {
    "concise": "Answer with a single word or a short phrase and nothing else.",
    "sentence": 'Answer in one complete sentence of the form "The answer is ...".',
    "cot": 'Think step by step, then finish with one sentence of the form "The answer is ...".',
}
# The same where there are options to choose from.
CHOICE_INSTRUCTIONS = {
    "concise": "Answer with the letter of the right option and nothing else.",
    "sentence": 'Answer in one complete sentence of the form "The answer is ...", with the letter of the right option.',
    "cot": (
        'Think step by step, then finish with one sentence of the form "The answer is ...", with the letter of the '
        "right option."
    ),
}
# A base model runs on into the next question; each style ends where its exemplars end.
STOPS = {
    "concise": ("\n",),
    "sentence": ("\n",),
    "cot": (f"\n{QUESTION.strip()}",),
    CONTINUATION: (),
}


def options(question: Question) -> dict[str, str]:
    """letter -> option, in the order in which they are shown."""
    return dict(zip(ascii_uppercase, question.choices, strict=False))


def asked(question: Question) -> str:
    """The question as it is put, with its options, if it has any, each on a line of its own."""
    return "\n".join([question.text, *(f"{letter}) {option}" for letter, option in options(question).items())])


def written(question: Question, style: str) -> str:
    """The gold answer of a question as an exemplar in this style shows it; an option is named by letter and text."""
    right = [f"{letter}) {option}" for letter, option in options(question).items() if option in question.answers]
    return question.worked.get(style) or TEMPLATES[style].format(answer=(right or question.answers)[0])


def few_shot(
    question: Question, exemplars: Sequence[Question], style: str, shots: int, seed: int, *, vary: str = "question"
) -> str:
    """The text a base model continues: `shots` exemplars and the question.

    The exemplars are drawn without replacement. With vary="question" the generator is seeded by (seed, question id), so
    that they differ from question to question and no single choice of exemplars colours a whole run. With vary="run"
    all questions see those of the seed: the sampler then reads them once a run, and seeds must be varied instead.

    Raises:
        ValueError: fewer exemplars than shots.
    """
    if shots > len(exemplars):
        raise ValueError(f"{shots} shots need as many exemplars, the dataset has {len(exemplars)}")
    keys = (question.id, "exemplars") if vary == "question" else ("exemplars",)
    chosen = keyed_generator(seed, *keys).permutation(len(exemplars))[:shots]
    shown = [f"{QUESTION}{asked(e)}\n{ANSWER} {written(e, style)}{SEPARATOR}" for e in (exemplars[i] for i in chosen)]
    return "".join(shown) + f"{QUESTION}{asked(question)}\n{ANSWER}"


def question_span(text: str, question: Question, style: str) -> tuple[int, int]:
    """Where in its prompt (a few-shot one, or a conversation as rendered) the evaluated question itself stands, options
    included, exemplars and instruction not: start and stop in characters.

    Raises:
        ValueError: a chat template that does not show the question as it is.
    """
    if style == CONTINUATION:
        return 0, len(text)
    put = asked(question).lstrip()  # templates may strip what a message begins with
    for frame in (f"\n{ANSWER}", f"\n{_instruction(question, style)}"):
        if (start := text.rfind(put + frame)) >= 0:
            return start, start + len(put)
    raise ValueError(f"the prompt of question {question.id!r} does not show its text as it stands")


def chat(question: Question, style: str) -> list[dict[str, str]]:
    """The messages a tuned model answers: the question and how to answer it."""
    return [{"role": "user", "content": f"{asked(question)}\n{_instruction(question, style)}"}]


def _instruction(question: Question, style: str) -> str:
    return (CHOICE_INSTRUCTIONS if question.choices else INSTRUCTIONS)[style]
