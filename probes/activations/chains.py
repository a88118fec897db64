"""Activations along an answer: one forward pass over each prompt and one of the answers that were sampled for it.

The sampler merges equal answers, so none of its rows shows a single answer from end to end. Here an answer is
chosen, in proportion to how often it was sampled, and read again token by token as it was sampled.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from probes.activations.capture import ResidualCapture
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import DEFAULT_HOOKS, of_answer
from semcal.runs.stored_activations import Activations
from semcal.sampling.decoding.paths import may_be_padded, observe_all
from semcal.sampling.records import Prompt
from semcal.seeds import keyed_generator
from semcal.semantics.extract import locate_form

_TOKENS = 8192  # padding included, in one pass


@dataclass(frozen=True)
class Chain:
    """A prompt and one of its answers.

    Attributes:
        prompt: What the model read.
        answer: The token ids it then wrote, including those that ended the answer; empty where there is no answer.
        text: The answer as text, without what ended it.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    text: str


def choose(weights: Sequence[float], seed: int, key: str) -> int:
    """Which of a question's distinct answers is read: drawn by seed and key in proportion to counts or probabilities;
    -1 where there is none."""
    total = sum(weights)
    if not total:
        return -1
    return int(keyed_generator(seed, key, "chain").choice(len(weights), p=[w / total for w in weights]))


def places(
    decode: Callable[[Sequence[int]], str],
    chain: Chain,
    style: str,
    positions: Sequence[str],
    *,
    forms: Collection[str] = (),
) -> dict[str, range]:
    """For each position, the place in prompt and answer together of the token read there; an empty range for none.

    That is the token after whose reading so much of the answer is known: `after_K_tokens` is the K-th token of the
    answer, `chain_0` the last of the prompt, `chain_100` the last of the answer (neither what ended it nor white space
    before that counts), and `before_answer` the token before the first that holds a character of the answering phrase,
    or of the last of the `forms` that it mentions.
    """
    length = _tokens_until(decode, chain.answer, chain.text.rstrip())
    found = locate_form(chain.text, style, forms)
    before = None if found is None else _tokens_until(decode, chain.answer, chain.text[: found[0] + 1]) - 1
    read = {position: of_answer(position, length, before) for position in positions}
    last = len(chain.prompt.ids) - 1
    return {p: range(0) if n is None else range(last + n, last + n + 1) for p, n in read.items()}


def _tokens_until(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str) -> int:
    """How many of the tokens it takes to write this beginning of their text."""
    numbers = range(len(ids) + 1)
    return bisect_left(numbers, True, key=lambda n: decode(ids[:n])[: len(text)] == text)


def read_chains(
    model: LanguageModel,
    chains: Sequence[Chain],
    positions: Sequence[str],
    *,
    style: str,
    forms: Collection[str] = (),
    hooks: Sequence[str] = DEFAULT_HOOKS,
) -> dict[str, Activations]:
    """Activations at positions along answers, by position; questions in the order of the chains.

    Args:
        style, forms: How the answering phrase is found, see `semcal.semantics.extract.locate_form`.

    Raises:
        NonFiniteError: NaN or infinity, naming the question and the layer.
        UserError: not even one prompt and answer fit into memory.
    """
    where = {c.prompt.key: places(model.decode, c, style, positions, forms=forms) for c in chains}
    observer = ResidualCapture(hooks, where)
    observer.choose(model.model)  # also where there is nothing to read
    sequences = [Prompt(c.prompt.key, c.prompt.ids + c.answer) for c in chains if any(where[c.prompt.key].values())]
    sequences.sort(key=lambda s: len(s.ids))
    tokens = _TOKENS
    padded = bool(sequences) and may_be_padded(model.model, model.device, sequences[-1].ids)
    while sequences:
        n = max(1, next((i for i in range(len(sequences)) if (i + 1) * len(sequences[i].ids) > tokens), len(sequences)))
        try:
            observe_all(model.model, model.device, sequences[:n], observer, padded=padded)
        except torch.OutOfMemoryError as error:
            if n == 1:
                raise UserError("out of GPU memory with a single answer; capture no positions in the answer") from error
            tokens = n * len(sequences[n - 1].ids) // 2
            torch.cuda.empty_cache()
            continue
        sequences = sequences[n:]
    return {position: observer.take([c.prompt.key for c in chains], position) for position in positions}
