"""What is checked while a model is sampled: that it is sampled as its own plain forward passes say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import PreTrainedModel

from semcal.sampling.decoding.decoders import Observer, pad_left, unpadded_pass
from semcal.sampling.decoding.output_layer import Scores
from semcal.sampling.decoding.rounding import SINGLE
from semcal.sampling.drawing import token_probabilities
from semcal.sampling.records import Outcome, Prompt, Sampling
from semcal.seeds import keyed_generator

PASSED, FAILED, NOT_MADE = "passed", "failed", "not made"
FALSE_ALARM = 1e-6  # of the test of the sampler's law
_FEWEST_DRAWS = 20
_WATCHED_ROWS = 16  # of one pass
_FIRST_DRAWS = 4  # of each watched question
_COMPARED_AT_ONCE = 2**20  # probabilities, compared with those of drawn tokens
_EVERY = 4  # of so many passes after the first token, one is watched


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What is checked.
        outcome: "passed", "failed" or "not made".
        why: What was compared; or why the check was not made.
        figure: The largest deviation found; None if it was not made.
        limit: The check fails beyond it; None if it was not made.
    """

    name: str
    outcome: str
    why: str
    figure: float | None = None
    limit: float | None = None

    @classmethod
    def of(cls, name: str, figure: float, limit: float, why: str) -> Check:
        """Passed where the figure is at most the limit."""
        return cls(name, PASSED if figure <= limit else FAILED, why, figure, limit)

    @classmethod
    def not_made(cls, name: str, why: str) -> Check:
        return cls(name, NOT_MADE, why)


class LawWatch:
    """Are tokens drawn with the probabilities that they are said to have?

    Of some draws: the mass of all likelier tokens, plus a random share of the token's own mass. Under the
    law it is uniform on [0, 1), independently for every draw, whatever the shape of the law (the randomised probability
    integral transform); a forgotten top-k or another temperature leaves too little in the tail. Likeliest first is
    another order than that of token ids, in which the sampler draws, so its own uniform numbers do not show here.

    Args:
        settings: The law that is meant.
    """

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self._random = keyed_generator(settings.seed, "", "law of the sampler")
        self._places: list[np.ndarray] = []
        self._passes = 0
        self._begun: set[str] = set()

    def first(self, prompts: Sequence[Prompt], logits: Scores, rows: np.ndarray, tokens: np.ndarray) -> None:
        """See first tokens: logits [question, vocab]; rows [draw] ascending, and the tokens drawn from them [draw].

        A question that is read again after it was given up draws the same tokens, which are not counted twice.
        """
        new = np.array([i for i, p in enumerate(prompts) if p.key not in self._begun], dtype=np.int64)
        self._begun |= {p.key for p in prompts}
        self._see(logits, rows, tokens, new, min(_FIRST_DRAWS, self.settings.m))

    def later(self, logits: Scores, rows: np.ndarray, tokens: np.ndarray) -> None:
        """See later tokens in the same form, some rows of some passes."""
        self._passes += 1
        if self._passes % _EVERY == 0:
            self._see(logits, rows, tokens, np.arange(len(logits)), 1)

    def _see(self, logits: Scores, rows: np.ndarray, tokens: np.ndarray, watched: np.ndarray, draws: int) -> None:
        some = watched[:: max(1, -(-len(watched) // _WATCHED_ROWS))]
        if not len(some):
            return
        law = token_probabilities(logits[torch.from_numpy(some).to(logits.device)], self.settings)
        which = np.searchsorted(rows, some)[:, None] + np.arange(draws)
        own = law.gather(-1, torch.from_numpy(tokens[which]).to(law.device))  # [row, draw]
        for at in range(0, len(some), step := max(1, _COMPARED_AT_ONCE // (draws * law.shape[-1]))):
            every, drawn = law[at : at + step, None], own[at : at + step, :, None]
            likelier, alike = ((every * chosen).sum(-1) for chosen in (every > drawn, every == drawn))
            likelier, alike = likelier.double().cpu().numpy(), alike.double().cpu().numpy()
            self._places.append((likelier + self._random.random(alike.shape) * alike).ravel())

    def check(self) -> Check:
        """The Kolmogorov-Smirnov distance of the draws seen from the uniform law."""
        name = "law of the sampler"
        places = np.concatenate(self._places) if self._places else np.zeros(0)
        if len(places) < _FEWEST_DRAWS:
            return Check.not_made(name, f"{len(places)} draws were seen, and the test needs {_FEWEST_DRAWS}")
        distance = float(stats.kstest(places, "uniform").statistic)
        limit = float(stats.kstwo.isf(FALSE_ALARM, len(places)))
        why = (
            f"distance of {len(places)} drawn tokens from their stated probabilities (Kolmogorov-Smirnov on the "
            f"randomised probability integral transform; a correct sampler fails once in {1 / FALSE_ALARM:,.0f} runs)"
        )
        return Check.of(name, distance, limit, why)


@torch.inference_mode()
def stated_apart(
    model: PreTrainedModel,
    device: torch.device,
    settings: Sampling,
    drawn: Sequence[tuple[Prompt, Outcome]],
    observer: Observer | None = None,
) -> float:
    """How far stated log-probabilities are from those of plain forward passes: the largest difference per token, in
    nats. Top-k and top-p must be off: at their edge, rounding decides what is kept.

    The observer sees each prompt, read together with its answer.
    """
    apart = 0.0
    for prompt, outcome in drawn:
        ids, n = torch.tensor(outcome.ids, dtype=torch.long, device=device), len(outcome.ids)
        read = pad_left([Prompt(prompt.key, (*prompt.ids, *outcome.ids))], 0, device)
        logits = unpadded_pass(model, read, n + 1, observer)[0, :-1]
        law = (logits.double() if logits.device.type != "mps" else logits.float()) / settings.temperature
        plain = float(law.log_softmax(-1).gather(-1, ids.to(law.device)[:, None]).sum())
        difference = abs(plain - outcome.logprob) / max(n, 1)
        apart = max(apart, difference if math.isfinite(difference) else math.inf)
    return apart


def reference_check(work: Mapping[str, Any], stated: float | None, prompts: int) -> Check:
    """Whether sampling agrees with plain forward passes.

    Args:
        work: What was found of the path, as `engine.Work` names it.
        stated: Of the log-probabilities of drawn answers, per token, in nats; None if they were not compared.
        prompts: Number of drawn answers compared.
    """
    path, single = work["path"], work["apart_single"]
    slow = f" (slower than shared-prefix: {work['why']})" if work["why"] else ""
    answers = "" if stated is None else f", and {prompts} drawn answers"
    against = "against passes without cache and padding, in nats"
    why = f"path {path}{slow}: 2 prompts continued by 3 tokens{answers}, {against}"
    why += "" if single is None else f"; {single:.2g} of at most {SINGLE:.2g} in single precision"
    return Check.of("equality with plain passes", max(work["apart"], stated or 0.0), work["apart_limit"], why)
