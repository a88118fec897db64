"""Exact enumeration gives the law itself, with a bound that holds."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats

from semcal import UserError
from semcal.sampling.engine import Sampler
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt, Sampling
from tests.conftest import save_checkpoint

PROMPTS = [Prompt("a", (0, 5, 6, 7, 8, 9)), Prompt("b", (0, 11)), Prompt("c", (0, 4, 9, 3))]


def exactly(model, prompts=PROMPTS, *, epsilon=1e-3, row_budget=5000, stop=(), **settings):
    chosen = Sampling(**{"max_new_tokens": 3, "stop": tuple(stop)} | settings)
    rule = model.stop_rule(stop)
    found = enumerate_answers(model.model, prompts, chosen, rule, limits=SearchLimits(epsilon, row_budget))
    found = {e.key: e for e in found}
    return [found[p.key] for p in prompts]


@torch.inference_mode()
def brute_force(model, prompt: Prompt, length: int, temperature: float) -> dict[tuple[int, ...], float]:
    """Every sequence of up to `length` tokens with its probability, by one forward pass a prefix."""
    law, prefixes = {}, {(): 1.0}
    for depth in range(length):
        following = {}
        logits = model.model(torch.tensor([(*prompt.ids, *p) for p in prefixes])).logits[:, -1].double() / temperature
        for (prefix, mass), row in zip(prefixes.items(), logits.softmax(-1).tolist(), strict=True):
            for token, p in enumerate(row):
                ended = token in model.eos_ids or depth == length - 1
                (law if ended else following)[(*prefix, token)] = mass * p
        prefixes = following
    return law


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_it_is_the_law_with_a_bound_on_the_rest(tiny, temperature):
    for prompt, found in zip(PROMPTS, exactly(tiny, temperature=temperature, max_new_tokens=2), strict=True):
        law = brute_force(tiny, prompt, 2, temperature)
        assert found.unexplored < 1e-3
        assert sum(math.exp(o.logprob) for o in found.outcomes) + found.unexplored == pytest.approx(1, abs=1e-5)
        for outcome in found.outcomes:
            assert math.exp(outcome.logprob) == pytest.approx(law[outcome.ids], rel=1e-3)
        found_ids = {o.ids for o in found.outcomes}
        assert sum(p for ids, p in law.items() if ids not in found_ids) == pytest.approx(found.unexplored, abs=1e-5)


def test_the_sampler_draws_from_it(tiny):
    m = 20_000
    sampler = Sampler(tiny.model, Sampling(m=m, max_new_tokens=3), tiny.stop_rule(()), device=tiny.device)
    drawn = {a.key: Counter({s.ids: s.count for s in a.samples}) for a in sampler.sample(PROMPTS)}
    for found in exactly(tiny):
        likely = [(o.ids, math.exp(o.logprob)) for o in found.outcomes if math.exp(o.logprob) * m >= 5]
        seen = [drawn[found.key][ids] for ids, _ in likely]
        awaited = [p * m for _, p in likely]
        seen.append(m - sum(seen))
        awaited.append(m - sum(awaited))
        assert stats.chisquare(seen, awaited).pvalue > 1e-3


def test_the_likeliest_answers_come_first_and_a_small_budget_says_what_it_left(tiny):
    whole, short = exactly(tiny, PROMPTS[:1], epsilon=1e-4)[0], exactly(tiny, PROMPTS[:1], row_budget=3)[0]
    assert short.rows <= 3
    assert short.unexplored > whole.unexplored
    best = {o.ids for o in whole.outcomes[:1]}
    assert best <= {o.ids for o in short.outcomes} or short.unexplored > math.exp(whole.outcomes[0].logprob)
    assert [o.logprob for o in whole.outcomes] == sorted((o.logprob for o in whole.outcomes), reverse=True)


def test_a_stop_string_ends_an_answer(tiny):
    found = exactly(tiny, PROMPTS[:1], stop=["yes no"], max_new_tokens=3, epsilon=1e-4)[0]
    for outcome in found.outcomes:
        text = tiny.decode(outcome.ids)
        assert "yes no" not in tiny.decode(outcome.ids[:-1])
        assert (outcome.finish == "stop") == ("yes no" in text or outcome.ids[-1] in tiny.eos_ids)


def test_many_questions_share_slots_and_rows(tmp_path):
    from semcal import LanguageModel

    model = LanguageModel.load(save_checkpoint(tmp_path / "m", scale=6.0), device="cpu")
    prompts = [Prompt(f"{i}-{j}", (0, 3 + i, 3 + j)) for i, j in itertools.product(range(12), range(8))]
    together = exactly(model, prompts, epsilon=0.05, row_budget=50)
    for prompt, found in list(zip(prompts, together, strict=True))[::17]:
        (alone,) = exactly(model, [prompt], epsilon=0.05, row_budget=50)
        assert {o.ids for o in alone.outcomes} == {o.ids for o in found.outcomes}
        assert found.unexplored == pytest.approx(alone.unexplored, abs=1e-4)


@pytest.mark.parametrize(("settings", "message"), [({"epsilon": 0}, "epsilon"), ({"row_budget": 0}, "row_budget")])
def test_impossible_settings_are_refused(tiny, settings, message):
    with pytest.raises(UserError, match=message):
        exactly(tiny, **settings)
