"""A question and the dataset it belongs to: plain records that know no model, no tokenizer and no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STYLES = ("concise", "sentence", "cot")
CONTINUATION = "continuation"  # the style of a text that is simply to be continued


@dataclass(frozen=True)
class Question:
    """One question with its gold answer.

    >>> semcal.Question(id="q1", text="Capital of the Netherlands?", answers=("Amsterdam", "Amsterdam, NL")).answers
    ('Amsterdam', 'Amsterdam, NL')

    Attributes:
        id: Unique within its dataset; samples, splits and seeds are keyed by it.
        text: What is asked (for a continuation task: the text to be continued).
        answers: Surface forms of the gold answer; the first one names its semantic class, all of them mean the same.
            A single text is one answer.
        group: Questions of one group never straddle a split (paraphrases, one entity); the id where none is given.
        choices: The options of a multiple-choice question, empty otherwise.
        others: Further correct answers that do not mean the same as `answers`, each as its surface forms.
        incorrect: Answers known to be wrong; a class that holds more of them than of correct ones is not correct.
        worked: style -> the gold answer written out in that style, for few-shot exemplars; a style that is missing
            is written from a template (`semcal.questions.prompts`).
    """

    id: str
    text: str
    answers: tuple[str, ...]
    group: str = ""
    choices: tuple[str, ...] = ()
    others: tuple[tuple[str, ...], ...] = ()
    incorrect: tuple[str, ...] = ()
    worked: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"question {self.id!r} is empty")
        answers = (self.answers,) if isinstance(self.answers, str) else self.answers
        object.__setattr__(self, "answers", tuple(a for a in answers if a.strip()))
        if not self.answers:
            raise ValueError(f"question {self.id!r} has no gold answer")
        others = (tuple(form for form in forms if form.strip()) for forms in self.others)
        object.__setattr__(self, "others", tuple(forms for forms in others if forms))
        if not self.group:
            object.__setattr__(self, "group", self.id)


@dataclass(frozen=True)
class Dataset:
    """The questions to evaluate, those set aside as few-shot exemplars, and what is known of their answers.

    Attributes:
        name: As the study calls it, e.g. "triviaqa".
        questions: The evaluated questions, in a fixed order.
        exemplars: Never evaluated; few-shot prompts draw from these alone.
        aliases: surface form -> name of its semantic class, for a closed answer space; empty where it is open.
        continuation: True where `text` is to be continued verbatim, without a question-and-answer frame.
    """

    name: str
    questions: tuple[Question, ...]
    exemplars: tuple[Question, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    continuation: bool = False
