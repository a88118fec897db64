"""Sampling in words: prompts in, answers as text with their counts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, overload

from semcal.errors import UserError, nearest
from semcal.models.checkpoint import Answer, LanguageModel
from semcal.sampling.decoding.decoders import Observer
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel


@overload
def sample(model: LanguageModel | ServedModel, prompts: str, **settings: Any) -> tuple[Answer, ...]: ...
@overload
def sample(
    model: LanguageModel | ServedModel, prompts: Sequence[str] | Sequence[Prompt], **settings: Any
) -> list[tuple[Answer, ...]]: ...
def sample(
    model: LanguageModel | ServedModel,
    prompts: str | Sequence[str] | Sequence[Prompt],
    *,
    max_rows: int | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> list[tuple[Answer, ...]] | tuple[Answer, ...]:
    r"""Draw m answers to each prompt.

    Text is encoded with the special tokens that the tokenizer itself adds. Samples are seeded by (seed, prompt), so
    that a prompt gets the same samples whatever it is sampled with.

    >>> model = semcal.LanguageModel.load("atlas:base")
    >>> answers = semcal.sample(model, "Question: Birthplace of Dagna Lorwick?\nAnswer:", m=20, stop="\n")
    >>> sum(answer.count for answer in answers)
    20

    Args:
        model: Loaded or served.
        prompts: One text, or several texts or prompts of token ids.
        max_rows: Distinct answers decoded in one pass; None chooses a number that suits the device.
        observer: Sees the prefill of every prompt.
        settings: Fields of `semcal.sampling.records.Sampling`: m (50), temperature (1.0), top_k, top_p,
            max_new_tokens (64), stop (one string or several) and seed (0).

    Returns:
        For each prompt its distinct answers, most frequent first; their counts sum to m. For one text its answers.

    Raises:
        UserError: unknown or impossible settings, prompts that are not text or contain control tokens, or not a model
            of semcal.
    """
    if isinstance(prompts, str):
        return sample(model, [prompts], max_rows=max_rows, observer=observer, **settings)[0]
    listed: Sequence[object] = prompts if isinstance(prompts, Sequence) else [prompts]
    wrong = next((p for p in listed if not isinstance(p, str | Prompt)), None)
    if wrong is not None:
        raise UserError(
            f"expected prompts as text, got {type(wrong).__name__} {wrong!r:.40}; "
            "semcal.questions.prompts.few_shot turns a question into text"
        )
    sampling = _sampling(settings)
    if not isinstance(model, LanguageModel):
        if not hasattr(model, "answer"):
            raise UserError(
                f"expected a model of semcal, got {type(model).__name__}; wrap a Hugging Face model by "
                "LanguageModel.of(model, tokenizer)"
            )
        texts = [p for p in prompts if isinstance(p, str)]
        if len(texts) < len(prompts):
            raise UserError("a served model reads text; pass prompts as strings")
        found = dict(model.answer([(t, t) for t in dict.fromkeys(texts)], sampling))
        return [found[t] for t in texts]
    encoded = [p if isinstance(p, Prompt) else model.prompt(p) for p in prompts]
    distinct = list({p.key: p for p in encoded}.values())
    if distinct:
        model.check_lengths(distinct, sampling.max_new_tokens)
    rule = model.stop_rule(sampling.stop)
    sampler = Sampler(model.model, sampling, rule, device=model.device, max_rows=max_rows)
    words = {a.key: model.in_words(a, sampling.stop) for a in sampler.sample(distinct, observer)}
    return [words[p.key] for p in encoded]


def _sampling(settings: dict[str, Any]) -> Sampling:
    known = [field.name for field in fields(Sampling)]
    if unknown := [name for name in settings if name not in known]:
        hint = nearest(unknown[0], known)
        raise UserError(f"unknown sampling setting {unknown[0]!r}{hint}; expected some of {', '.join(known)}")
    stop: Any = settings.get("stop", ())
    settings["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return Sampling(**settings)
