"""The sampler draws from the model's own distribution, whatever the batch, and says what it drew."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy import stats

from semcal import LanguageModel, UserError, sample
from semcal.errors import NonFiniteError
from semcal.sampling.decoding.decoders import pad_left, prefill
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from tests.conftest import save_checkpoint

PROMPTS = [Prompt("a", (0, 5, 6, 7, 8, 9)), Prompt("b", (0, 11)), Prompt("c", (0, 4, 9, 3)), Prompt("d", (0, 12, 13))]


def answered(model: LanguageModel, prompts=PROMPTS, max_rows=None, stop=(), **settings):
    chosen = Sampling(**{"max_new_tokens": 4, "stop": tuple(stop)} | settings)
    rule = model.stop_rule(stop)
    sampler = Sampler(model.model, chosen, rule, device=model.device, max_rows=max_rows)
    found = {a.key: a for a in sampler.sample(prompts)}
    return [found[p.key] for p in prompts]


def next_token_law(model: LanguageModel, ids, temperature=1.0) -> torch.Tensor:
    logits = model.model(torch.tensor([ids])).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


def chi_square(observed: Counter, expected: dict, total: int) -> float:
    """p-value of the counts against the exact law; outcomes expected fewer than five times are pooled."""
    large = [k for k, p in expected.items() if p * total >= 5]
    seen = [observed[k] for k in large]
    awaited = [expected[k] * total for k in large]
    rest = total - sum(awaited)
    if rest > 1e-6 * total:
        seen.append(total - sum(seen))
        awaited.append(rest)
    return float(stats.chisquare(seen, [a * sum(seen) / sum(awaited) for a in awaited]).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_two_token_answers_follow_the_exact_law(tiny, temperature):
    m, key = 20_000, PROMPTS[0]
    (got,) = answered(tiny, [key], m=m, max_new_tokens=2, temperature=temperature)
    observed, expected = Counter({s.ids: s.count for s in got.samples}), {}
    for first, p in enumerate(next_token_law(tiny, key.ids, temperature).tolist()):
        if first in tiny.eos_ids:
            expected[(first,)] = p
            continue
        for second, q in enumerate(next_token_law(tiny, (*key.ids, first), temperature).tolist()):
            expected[(first, second)] = p * q
    assert math.isclose(sum(expected.values()), 1, abs_tol=1e-6)
    assert chi_square(observed, expected, m) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_it_draws_what_generate_draws(tiny, temperature):
    m, prompt = 5_000, PROMPTS[1]
    (got,) = answered(tiny, [prompt], m=m, max_new_tokens=2, temperature=temperature)
    torch.manual_seed(0)
    rows = tiny.model.generate(
        torch.tensor([prompt.ids]),
        attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=temperature,
        num_return_sequences=m,
        max_new_tokens=2,
        pad_token_id=0,
    )[:, len(prompt.ids) :].tolist()
    ends = tiny.eos_ids
    ours = Counter({s.ids: s.count for s in got.samples})
    theirs = Counter((r[0],) if r[0] in ends else tuple(r) for r in rows)
    answers = [a for a in set(ours) | set(theirs) if ours[a] + theirs[a] >= 10]
    table = [[found[a] for a in answers] for found in (ours, theirs)]
    for row in table:
        row.append(m - sum(row))
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_tokens_beyond_rank_50_are_drawn(tmp_path):
    flat = LanguageModel.load(save_checkpoint(tmp_path / "flat", scale=0.1), device="cpu")
    (got,) = answered(flat, [PROMPTS[0]], m=2000, max_new_tokens=1)
    top50 = set(next_token_law(flat, PROMPTS[0].ids).topk(50).indices.tolist())
    assert any(s.ids[0] not in top50 for s in got.samples)


def test_top_k_and_top_p_keep_what_they_say(tiny):
    law = next_token_law(tiny, PROMPTS[0].ids)
    (got,) = answered(tiny, [PROMPTS[0]], m=2000, max_new_tokens=1, top_k=3)
    assert {s.ids[0] for s in got.samples} == set(law.topk(3).indices.tolist())
    (got,) = answered(tiny, [PROMPTS[0]], m=2000, max_new_tokens=1, top_p=0.5)
    ordered = law.sort(descending=True)
    kept = int((ordered.values.cumsum(-1) < 0.5).sum()) + 1
    assert {s.ids[0] for s in got.samples} <= set(ordered.indices[:kept].tolist())


def test_samples_depend_on_seed_and_key_but_not_on_the_batch(tiny):
    reference = answered(tiny, m=50, max_new_tokens=8)
    for max_rows in (1, 20, 70):
        again = answered(tiny, m=50, max_new_tokens=8, max_rows=max_rows)
        assert [[(s.ids, s.count) for s in a.samples] for a in again] == [
            [(s.ids, s.count) for s in a.samples] for a in reference
        ]
    backwards = answered(tiny, PROMPTS[::-1], m=50, max_new_tokens=8)
    assert [[s.ids for s in a.samples] for a in backwards[::-1]] == [[s.ids for s in a.samples] for a in reference]
    other = answered(tiny, m=50, max_new_tokens=8, seed=1)
    assert [a.samples for a in other] != [a.samples for a in reference]
    renamed = answered(tiny, [Prompt("z", PROMPTS[0].ids)], m=50, max_new_tokens=8)
    assert renamed[0].samples != reference[0].samples


def test_counts_sum_to_m_and_distinct_sequences_are_distinct(tiny):
    for a in answered(tiny, m=50, max_new_tokens=6):
        assert sum(s.count for s in a.samples) == 50
        assert len({s.ids for s in a.samples}) == len(a.samples)
        assert [s.count for s in a.samples] == sorted((s.count for s in a.samples), reverse=True)


def test_logprob_is_that_of_the_sequence_under_the_law_sampled_from(tiny):
    for temperature in (1.0, 0.7):
        for a, prompt in zip(answered(tiny, m=20, max_new_tokens=5, temperature=temperature), PROMPTS, strict=True):
            for s in a.samples:
                total = 0.0
                for i, token in enumerate(s.ids):
                    total += math.log(next_token_law(tiny, (*prompt.ids, *s.ids[:i]), temperature)[token])
                assert s.logprob == pytest.approx(total, abs=1e-4)


def test_a_sample_ends_at_end_of_sequence_or_at_its_length(tiny):
    for a in answered(tiny, m=200, max_new_tokens=6):
        for s in a.samples:
            ended = s.ids[-1] in tiny.eos_ids
            assert s.finish == ("stop" if ended else "length")
            assert ended or len(s.ids) == 6
            assert not set(s.ids[:-1]) & tiny.eos_ids


def test_a_stop_string_across_tokens_ends_the_row_and_is_cut_off(tiny):
    # Words are joined by single spaces on decoding, so "yes no" never is one token.
    free = sample(tiny, [PROMPTS[0]], m=4000, max_new_tokens=6)[0]
    stopped = sample(tiny, [PROMPTS[0]], m=4000, max_new_tokens=6, stop=["yes no"])[0]
    hit = [a for a in free if "yes no" in a.text]
    assert hit, "the test needs a model that says so"
    assert not any("yes no" in a.text for a in stopped)
    for a in stopped:
        whole = tiny.decode(a.ids)
        assert (a.finish == "stop") == ("yes no" in whole or a.ids[-1] in tiny.eos_ids)
        assert a.text == whole.split("yes no")[0]
        assert "yes no" not in tiny.decode(a.ids[:-1])


def test_a_prefill_is_seen_once_with_the_ids_that_are_sampled_from(tiny):
    seen = []

    class Watcher:
        def watching(self, _model, _batch):
            from contextlib import nullcontext

            return nullcontext()

        def prefilled(self, batch):
            seen.append((batch.keys, [r[m.bool()].tolist() for r, m in zip(batch.ids, batch.mask, strict=True)]))

    sampler = Sampler(tiny.model, Sampling(m=3, max_new_tokens=2), tiny.stop_rule(()), device=tiny.device, max_rows=8)
    list(sampler.sample(PROMPTS, Watcher()))
    assert [k for keys, _ in seen for k in keys] == [p.key for p in PROMPTS]
    shared = PROMPTS[0].ids[:1]  # read once, before
    assert [(*shared, *i) for _, ids in seen for i in ids] == [p.ids for p in PROMPTS]


def test_prefill_logits_are_those_of_the_unpadded_prompt(tiny):
    logits, _ = prefill(tiny.model, pad_left(PROMPTS, 0, tiny.device))
    for row, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(row, tiny.model(torch.tensor([prompt.ids])).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_nan_logits_name_the_question(tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / "m"), device="cpu")
    with torch.no_grad():
        model.model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(NonFiniteError, match="'a': logits of new token 0"):
        answered(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 1}, "at least 2"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ("",)}, "empty stop"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
