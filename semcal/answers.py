"""Sampling in words: prompts in, answers as text with their counts out. What a notebook calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semcal.models.load import LanguageModel
from semcal.sampling import Answered, Observer, Prompt, Sampling, StopRule, cut, generate


@dataclass(frozen=True)
class Answer:
    """One distinct answer.

    Attributes:
        text: Up to the stop string that ended it, exclusive; special tokens left out.
        ids: Its token ids, the last one included.
        count: How many of the M samples it is.
        logprob: Of its token sequence, in nats.
        finish: "stop" or "length".
    """

    text: str
    ids: tuple[int, ...]
    count: int
    logprob: float
    finish: str


def stop_rule(model: LanguageModel, stop: Sequence[str]) -> StopRule:
    """The stop rule of a model: its end-of-sequence tokens and these stop strings, which may name special tokens."""
    special = set(stop) & set(model.tokenizer.all_special_tokens)
    ends = {model.tokenizer.get_vocab()[s] for s in special}
    return StopRule(model.decode, [s for s in stop if s not in special], model.eos_ids | ends, model.output_size)


def in_words(model: LanguageModel, answered: Answered, stop: Sequence[str]) -> tuple[Answer, ...]:
    """The samples of one question as text."""
    return tuple(Answer(cut(model.decode(s.ids), stop), s.ids, s.count, s.logprob, s.finish) for s in answered.samples)


def sample(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Prompt],
    *,
    m: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 16,
    observer: Observer | None = None,
) -> list[tuple[Answer, ...]]:
    """Draw m answers to every prompt; distinct answers with counts, the most frequent first.

    A prompt that is text is encoded as it stands and keyed by its text, so that equal prompts get equal samples.

    Raises:
        UserError: m < 2, temperature <= 0 and other impossible settings.
    """
    settings = Sampling(m, temperature, top_k, top_p, max_new_tokens, tuple(stop), seed)
    encoded = [p if isinstance(p, Prompt) else Prompt(p, model.encode(p)) for p in prompts]
    answered = generate(
        model.model,
        encoded,
        settings,
        stop_rule(model, stop),
        device=model.device,
        batch_size=batch_size,
        observer=observer,
    )
    return [in_words(model, a, stop) for a in answered]
