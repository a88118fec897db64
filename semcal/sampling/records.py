"""The inputs and outputs of the sampler: token ids on both sides, no text, no dataset."""

from dataclasses import asdict, dataclass
from typing import Any

from semcal.errors import UserError

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Sampling:
    """All settings of the sampler; the generation config of a checkpoint is not used.

    Attributes:
        m: Samples per question, at least 2.
        temperature: Divides the logits; 1 samples from the model's own distribution p.
        top_k: Keep only the k likeliest tokens; None keeps all.
        top_p: Keep the smallest set of likeliest tokens with at least this mass; None keeps all.
        max_new_tokens: A sample is cut after this many tokens; its finish is then "length".
        stop: A sample ends as soon as its text contains one of these strings.
        seed: Determines, with the key of a question, its samples, whatever the batch.
    """

    m: int = 50
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.m < 2:
            raise UserError(f"m is {self.m}; a class distribution needs at least 2 samples per question")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; it must be above 0 (1 samples from the model itself)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in (0, 1]; leave it out to keep every token")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if any(not s for s in self.stop):
            raise UserError("an empty stop string would stop every sample at once; leave it out")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    """The prompt of one question.

    Attributes:
        key: Id of the question; unique within a run, part of the seed.
        ids: Token ids, special tokens included.
    """

    key: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """One distinct token sequence that answers a question.

    Attributes:
        ids: Generated token ids, including the one that ended it.
        logprob: Log-probability under the distribution sampled from, in nats.
        finish: "stop" (end-of-sequence token or stop string) or "length" (cut at max_new_tokens).
    """

    ids: tuple[int, ...]
    logprob: float
    finish: str


@dataclass(frozen=True)
class Sample(Outcome):
    """The same, and how many of the M samples of the question are this sequence."""

    count: int


@dataclass(frozen=True)
class Answered:
    """The samples of one question: distinct sequences, most frequent first; counts sum to m."""

    key: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Enumerated:
    """The answers of one question, likeliest first, and the mass of all others.

    Attributes:
        key: The question.
        outcomes: Distinct answers with their probabilities.
        unexplored: Mass of all other answers.
        rows: Number of prefixes decoded.
    """

    key: str
    outcomes: tuple[Outcome, ...]
    unexplored: float
    rows: int
