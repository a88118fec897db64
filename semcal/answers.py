"""Sampling in words: prompts in, answers as text with their counts out. What a notebook calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.sampling.decoders import Observer
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Answered, Enumerated, Prompt, Sampling
from semcal.sampling.stopping import StopRule, cut

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import Reply, ServedModel


@dataclass(frozen=True)
class Answer:
    """One distinct answer.

    Attributes:
        text: Up to the stop string that ended it, exclusive; special tokens left out.
        ids: Its token ids, the last one included; empty for a served model.
        count: How many of the M samples it is; None where it was enumerated and not drawn.
        logprob: Of its token sequence, in nats; None where a server does not say.
        finish: "stop" or "length".
    """

    text: str
    ids: tuple[int, ...]
    count: int | None
    logprob: float | None
    finish: str


def stop_rule(model: LanguageModel, stop: Sequence[str]) -> StopRule:
    """The stop rule of a model: its end-of-sequence tokens and these stop strings, which may name special tokens."""
    special = set(stop) & set(model.tokenizer.all_special_tokens)
    ends = {model.tokenizer.get_vocab()[s] for s in special}
    return StopRule(model.decode, [s for s in stop if s not in special], model.eos_ids | ends, model.output_size)


def in_words(model: LanguageModel, answered: Answered, stop: Sequence[str]) -> tuple[Answer, ...]:
    """The samples of one question as text."""
    return tuple(Answer(cut(model.decode(s.ids), stop), s.ids, s.count, s.logprob, s.finish) for s in answered.samples)


def enumerated_in_words(model: LanguageModel, found: Enumerated, stop: Sequence[str]) -> tuple[Answer, ...]:
    """The answers of one question that exact enumeration found, as text."""
    return tuple(Answer(cut(model.decode(o.ids), stop), o.ids, None, o.logprob, o.finish) for o in found.outcomes)


def served_in_words(replies: Sequence[Reply]) -> tuple[Answer, ...]:
    """The answers of a served model in the same form as those of a loaded one."""
    return tuple(Answer(r.text, (), r.count, r.logprob, r.finish) for r in replies)


def sample(
    model: LanguageModel | ServedModel,
    prompts: Sequence[str] | Sequence[Prompt],
    *,
    m: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    seed: int = 0,
    max_rows: int | None = None,
    observer: Observer | None = None,
) -> list[tuple[Answer, ...]]:
    """Draw m answers to every prompt; distinct answers with counts, the most frequent first.

    A prompt that is text is encoded as it stands and keyed by its text, so that equal prompts get equal samples.
    `max_rows` distinct answers are decoded in one pass; None suits the device.

    Raises:
        UserError: m < 2, temperature <= 0 and other impossible settings.
    """
    settings = Sampling(m, temperature, top_k, top_p, max_new_tokens, tuple(stop), seed)
    if not isinstance(model, LanguageModel):
        return _sample_served(model, prompts, settings)
    encoded = [p if isinstance(p, Prompt) else Prompt(p, model.encode(p)) for p in prompts]
    distinct = list({p.key: p for p in encoded}.values())
    sampler = Sampler(model.model, settings, stop_rule(model, stop), device=model.device, max_rows=max_rows)
    words = {a.key: in_words(model, a, stop) for a in sampler.sample(distinct, observer)}
    return [words[p.key] for p in encoded]


def _sample_served(
    model: ServedModel, prompts: Sequence[str] | Sequence[Prompt], settings: Sampling
) -> list[tuple[Answer, ...]]:
    texts = [p for p in prompts if isinstance(p, str)]
    if len(texts) < len(prompts):
        raise UserError("a served model reads text; pass prompts as strings")
    found = dict(model.answer([(t, t) for t in dict.fromkeys(texts)], settings))
    return [served_in_words(found[t]) for t in texts]
