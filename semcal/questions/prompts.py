"""From a question to what the model reads: few-shot prompts for base models, chat messages for tuned ones.

Knows styles and wording, and no tokenizer. Tuned models get an instruction in words, base models get exemplars that are
written in the style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar

from semcal.errors import UserError
from semcal.questions.pool import unasked
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.questions.wording import bare_text, natural_form
from semcal.seeds import keyed_generator

Messages = list[dict[str, str]]  # of a conversation: role and content
QUESTION, ANSWER, SEPARATOR = "Question: ", "Answer:", "\n\n"

# How a gold answer is written in a full sentence, if the dataset does not write it out; `extract` reads all of these.
SENTENCES = (
    "The answer is {answer}.",
    "The correct answer is {answer}.",
    "Here the answer is {answer}.",
    "To this question, the answer is {answer}.",
    "As for this question, its answer is {answer}.",
)
INSTRUCTIONS = {
    "concise": "Answer with a single word or a short phrase and nothing else.",
    "sentence": 'Answer in one complete sentence of the form "The answer is ...".',
    "cot": 'Think step by step, then finish with one sentence of the form "The answer is ...".',
}
# The same for questions with options.
CHOICE_INSTRUCTIONS = {
    "concise": "Answer with the letter of the right option and nothing else.",
    "sentence": 'Answer in one complete sentence of the form "The answer is ...", with the letter of the right option.',
    "cot": (
        'Think step by step, then finish with one sentence of the form "The answer is ...", with the letter of the '
        "right option."
    ),
}
# A base model goes on with another question, so each style ends where its exemplars end.
STOPS = {
    "concise": ("\n",),
    "sentence": ("\n",),
    "cot": (f"\n{QUESTION.strip()}",),
    CONTINUATION: (),
}


def options(question: Question) -> dict[str, str]:
    """Letter -> option, in the order shown."""
    return dict(zip(ascii_uppercase, question.choices, strict=False))


def asked(question: Question) -> str:
    """The question as the model reads it, with each of its options, if any, on a line of its own."""
    return "\n".join([question.text, *(f"{letter}) {option}" for letter, option in options(question).items())])


def written(question: Question, style: str, seed: int | None) -> str:
    """The gold answer as an exemplar in this style shows it, or "" where no one knows how it would be written.

    A dataset may write it out (`Question.worked`). Otherwise a concise answer is the gold answer in its natural form,
    an option its letter and text, and a sentence one of `SENTENCES`, chosen by seed and question id; without a seed it
    is the first of these, which the instructions for tuned models ask for. A chain of thought cannot be made up: it is
    "", and for an option the answering phrase alone. For a continuation this is the text that truly follows.
    """
    if text := question.worked.get(style):
        return text
    right = [f"{letter}) {option}" for letter, option in options(question).items() if option in question.answers]
    answer = right[0] if right else question.answers[0] if style == CONTINUATION else natural_form(question.answers)
    if style == "sentence":
        chosen = 0 if seed is None else int(keyed_generator(seed, question.id, "sentence").integers(len(SENTENCES)))
        return SENTENCES[chosen].format(answer=answer)
    if style == "cot":
        return SENTENCES[0].format(answer=answer) if right else ""
    return answer


def exemplars_for(dataset: Dataset, style: str) -> tuple[Question, ...]:
    """The exemplars of a dataset that can be shown in a style: its own, or those of the pool where it has none.

    In cot these are its exemplars with a worked chain of thought, and questions with options.
    """
    own = tuple(e for e in dataset.exemplars if style != "cot" or e.choices or "cot" in e.worked)
    return own if own or not dataset.exemplars else unasked(bare_text(q.text) for q in dataset.questions)


def few_shot(
    question: Question, exemplars: Sequence[Question], style: str, shots: int, seed: int, *, vary: str = "question"
) -> str:
    """The text a base model continues: `shots` exemplars and the question.

    The exemplars are drawn without replacement. With vary="question" the generator is seeded by (seed, question id), so
    that no single choice of exemplars influences a whole run. With vary="run" all questions share the exemplars that
    the seed gives; the sampler then reads them once per run, and the seed should be varied across runs.

    Raises:
        UserError: fewer exemplars than shots, or one that has no chain of thought to show.
    """
    if shots > len(exemplars):
        raise UserError(f"shots is {shots}, but there are only {len(exemplars)} exemplars; lower shots")
    keys = (question.id, "exemplars") if vary == "question" else ("exemplars",)
    chosen = keyed_generator(seed, *keys).permutation(len(exemplars))[:shots]
    shown = []
    for exemplar in (exemplars[i] for i in chosen):
        if not (answer := written(exemplar, style, seed)):
            raise UserError(
                f"exemplar {exemplar.id!r} has no worked solution in style {style!r}; semcal.questions.pool.pool() has "
                "questions with one"
            )
        shown.append(f"{QUESTION}{asked(exemplar)}\n{ANSWER} {answer}{SEPARATOR}")
    return "".join(shown) + f"{QUESTION}{asked(question)}\n{ANSWER}"


def question_span(text: str, question: Question, style: str) -> tuple[int, int]:
    """Start and stop, in characters, of the evaluated question in its prompt (few-shot, or a rendered conversation).

    The span includes the question's options, but neither exemplars nor the instruction.

    Raises:
        ValueError: the chat template does not show the question verbatim.
    """
    if style == CONTINUATION:
        return 0, len(text)
    put = asked(question).lstrip()  # templates may strip leading whitespace from a message
    for frame in (f"\n{ANSWER}", f"\n{_instruction(question, style)}"):
        if (start := text.rfind(put + frame)) >= 0:
            return start, start + len(put)
    raise ValueError(f"the prompt of question {question.id!r} does not contain its text verbatim")


def chat(question: Question, style: str) -> Messages:
    """The messages that a tuned model answers: the question and how to answer it."""
    return [{"role": "user", "content": f"{asked(question)}\n{_instruction(question, style)}"}]


def _instruction(question: Question, style: str) -> str:
    return (CHOICE_INSTRUCTIONS if question.choices else INSTRUCTIONS)[style]


# ---- the forms of a prompt -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How prompts are written and ended. Only few-shot prompts have `shots`, which `vary` and `seed` choose.

    Attributes:
        rendered: Whether a chat template writes the prompt, special tokens included.
    """

    style: str
    shots: int = 0
    vary: str = "question"
    seed: int = 0
    rendered: ClassVar[bool] = False

    @property
    def endless(self) -> bool:
        """Whether an answer may run to its token limit, however short the gold answer is."""
        return False

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer unless the study sets its own."""
        return STOPS[self.style]

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:
        """The prompt as text; `render` applies a chat template to messages."""
        raise NotImplementedError

    def gold(self, question: Question) -> str:
        """The gold answer as it would be written after this prompt; "" where no one knows."""
        return written(question, self.style, None)

    def answered(self, question: Question, prompt: str, answer: str, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        """A prompt followed by an answer, as the model would have written it; `render` is for whole conversations."""
        return f"{prompt} {answer}"


class FewShot(Form):
    """Exemplars in the style of the answer, then the question: for base models."""

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        exemplars = exemplars_for(dataset, self.style) if self.shots else ()
        return few_shot(question, exemplars, self.style, self.shots, self.seed, vary=self.vary)

    def gold(self, question: Question) -> str:
        return written(question, self.style, self.seed)


class Chat(Form):
    """The question and an instruction in a chat template: for tuned models, which end by themselves."""

    rendered = True

    @property
    def endless(self) -> bool:
        return self.style == "cot"

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        return render(chat(question, self.style))

    def answered(self, question: Question, prompt: str, answer: str, render: Callable[[Messages], str]) -> str:
        whole = render([*chat(question, self.style), {"role": "assistant", "content": answer}])
        shown = whole.startswith(prompt) and answer in whole
        # A template may write something, such as a space, between the prompt and the first word of an answer.
        lead = whole[len(prompt) :].partition(answer)[0] if shown else ""
        return prompt + lead + answer


class Continuation(Form):
    """A text to be continued, as it is."""

    @property
    def endless(self) -> bool:
        return True

    def text(self, dataset: Dataset, question: Question, render: Callable[[Messages], str]) -> str:  # noqa: ARG002
        return question.text
