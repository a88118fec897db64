"""Whether an engine draws tokens as often as it says: first tokens, counted, against the probabilities it states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from semcal.sampling.checks import FALSE_ALARM, Check

LAW = "law of the sampler"
_LEAST_EXPECTED = 5.0  # draws of a cell


def stated_draws(found: Sequence[tuple[Mapping[int, int], Mapping[int, float]]]) -> Check:
    """Pearson's chi-square over the likely tokens of some prompts, with all others of a prompt in one cell.

    Args:
        found: [prompt] (how often each token was drawn, log-probabilities of the likeliest tokens).
    """
    statistic, freedom, draws = 0.0, 0, 0
    for drawn, stated in found:
        n = sum(drawn.values())
        likely = [token for token, logprob in stated.items() if n * np.exp(logprob) >= _LEAST_EXPECTED]
        expected = np.array([n * np.exp(stated[token]) for token in likely])
        observed = np.array([drawn.get(token, 0) for token in likely])
        rest, others = max(n - expected.sum(), 0.0), n - observed.sum()
        if rest >= _LEAST_EXPECTED:
            expected, observed = np.append(expected, rest), np.append(observed, others)
        else:  # with the least likely of the others, so that no cell expects too few
            least = int(expected.argmin())
            expected[least] += rest
            observed[least] += others
        expected *= n / expected.sum()
        statistic += float(((observed - expected) ** 2 / expected).sum())
        freedom += max(len(expected) - 1, 0)
        draws += n
    if freedom == 0:
        return Check.not_made(LAW, "each of the prompts tried is followed by one token nearly always")
    why = (
        f"chi-square of {draws} first tokens after {len(found)} prompts against their stated probabilities (a correct "
        f"sampler fails once in {1 / FALSE_ALARM:,.0f} runs)"
    )
    return Check.of(LAW, statistic, float(stats.chi2.isf(FALSE_ALARM, freedom)), why)
