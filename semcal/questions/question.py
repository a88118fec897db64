"""A question and its dataset: plain records that know no model, no tokenizer and no file."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from semcal.questions.cells import as_text, missing, plain

STYLES = ("concise", "sentence", "cot")
POOL = "pool-"  # how the ids of the project's own exemplars begin
CONTINUATION = "continuation"  # the style of a plain text that the model continues


@dataclass(frozen=True)
class BlindQuestion:
    """What a collapsing function may know of a question: everything but which answer is right (`Question.blind`).

    Attributes:
        id, text, group, choices: As in `Question`.
    """

    id: str
    text: str
    group: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One question with its gold answer.

    >>> semcal.Question(id="q1", text="Capital of the Netherlands?", answers=("Amsterdam", "Amsterdam, NL")).answers
    ('Amsterdam', 'Amsterdam, NL')

    Attributes:
        id: Unique within its dataset; samples, splits and seeds are keyed by it. Numbers count as text in their
            shortest decimal form, here and in all answers; missing ones (None, NaN, "") are left out.
        text: The question, or the text to continue.
        answers: Surface forms of the gold answer, all with the same meaning, the most natural one first. A single text
            is one answer.
        group: Questions of one group (paraphrases, questions about one entity) stay on one side of every split; the id
            by default.
        choices: The options of a multiple-choice question; empty otherwise.
        others: Further correct answers with other meanings than `answers`, each as its surface forms.
        incorrect: Answers known to be wrong; a class that holds more of them than of correct ones is not correct.
        worked: Style -> the gold answer written out in that style, for few-shot exemplars; see
            `semcal.questions.prompts.written` for the styles that are missing.
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
        if missing(self.id):
            raise ValueError("a question has no id; give each an id of its own")
        object.__setattr__(self, "id", as_text(self.id))
        if missing(self.text):
            raise ValueError(f"question {self.id!r} is empty; write its text, or leave it out")
        answers = (self.answers,) if isinstance(self.answers, str) else self.answers
        object.__setattr__(self, "answers", _present(answers))
        if not self.answers:
            raise ValueError(f"question {self.id!r} has no gold answer; give at least one, or leave the question out")
        others = tuple(forms for own in self.others if (forms := _present(own)))
        object.__setattr__(self, "others", others)
        object.__setattr__(self, "incorrect", _present(self.incorrect))
        if missing(self.group):
            object.__setattr__(self, "group", self.id)

    @property
    def blind(self) -> BlindQuestion:
        """The question without its gold answers, as a collapsing function sees it."""
        group = hashlib.sha256(self.group.encode()).hexdigest()[:12]  # a label may hold the answer, such as a page
        return BlindQuestion(self.id, self.text, group, self.choices)


@dataclass(frozen=True)
class Dataset:
    """The questions to evaluate, the few-shot exemplars, and the known forms of the answers.

    Attributes:
        name: The name in the study, e.g. "triviaqa".
        questions: The evaluated questions, in a fixed order.
        exemplars: Questions that only few-shot prompts show; never evaluated. Those of `semcal.questions.pool` where
            the dataset has neither worked solutions nor options.
        aliases: Surface form -> semantic class of a closed answer space; empty for an open one.
        alias_lists: The distinct lists of equivalent forms of an open answer space: the gold answers of every question
            of the source, evaluated or not, and those of the user's file. They say nothing of which list belongs to
            which question.
        rows: Questions of the source, evaluated or not; 0 where that is not known.
    """

    name: str
    questions: tuple[Question, ...]
    exemplars: tuple[Question, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    alias_lists: tuple[tuple[str, ...], ...] = ()
    rows: int = 0

    @property
    def summary(self) -> str:
        """What becomes of the rows, in words: "mine: 40 rows, 36 evaluated, 4 kept as exemplars"."""
        own = sum(not e.id.startswith(POOL) for e in self.exemplars)
        parts = [f"{len(self.questions)} evaluated", *([f"{own} kept as exemplars"] if own else [])]
        left = self.rows - len(self.questions) - own
        parts += [f"{left} left out"] if left > 0 else []
        return f"{self.name}: {self.rows} rows, {', '.join(parts)}"


def _present(answers: Iterable[object]) -> tuple[str, ...]:
    if type(answers) is tuple and all(map(plain, answers)):
        return answers
    return tuple(as_text(answer) for answer in answers if not missing(answer))
