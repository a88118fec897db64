"""Both ways to decode compute what a plain forward pass computes, and draw the same samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from semcal import LanguageModel, UserError
from semcal.sampling import engine as engine_module
from semcal.sampling.decoding.decoders import ExpandedDecoder, TreeDecoder, shared_prefix
from semcal.sampling.decoding.paths import EXPANDED, REREAD, SHARED
from semcal.sampling.decoding.tree_attention import PrefixPass
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from tests.conftest import CONFIGS, MORE_CONFIGS, save_checkpoint

SHOTS = (0, 5, 9, 14, 7, 8, 21, 3, 12)
PROMPTS = [Prompt(f"q{i}", (*SHOTS, *tail)) for i, tail in enumerate([(4,), (6, 7, 8, 11, 5), (9, 3), (4, 4, 10)])]
STRANGERS = [Prompt(f"s{i}", ids) for i, ids in enumerate([(0, 3), (5, 6, 7, 8, 9, 10, 11, 3), (2, 9, 9, 4)])]


def load(folder, architecture="llama", **settings) -> LanguageModel:
    return LanguageModel.load(save_checkpoint(folder / architecture, architecture, **settings), device="cpu")


def sampler_of(model, *, path=None, max_rows=None, prefix=None, **settings) -> Sampler:
    settings = {"m": 30, "max_new_tokens": 8} | settings
    chosen = Sampling(**settings)
    rule, limits = model.stop_rule(chosen.stop), {"max_rows": max_rows, "path": path, "prefix": prefix}
    return Sampler(model.model, chosen, rule, device=model.device, **limits)


def drawn(sampler, prompts):
    found = {a.key: a for a in sampler.sample(prompts)}
    return [[(s.ids, s.count, s.finish) for s in found[p.key].samples] for p in prompts]


@torch.inference_mode()
def plain_logprob(model, prompt, ids) -> float:
    logits = model.model(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 : -1]
    return float(logits.double().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE_CONFIGS])
@pytest.mark.parametrize("prompts", [PROMPTS, STRANGERS], ids=["shared", "nothing-shared"])
def test_log_probabilities_are_those_of_a_plain_forward_pass(tmp_path, architecture, prompts):
    model = load(tmp_path, architecture)
    sampler = sampler_of(model, path=SHARED, max_rows=40)
    for answered in sampler.sample(prompts):
        prompt = next(p for p in prompts if p.key == answered.key)
        assert len(answered.samples) > 1, "nothing branched"
        for s in answered.samples:
            assert s.logprob == pytest.approx(plain_logprob(model, prompt, s.ids), abs=1e-4)


@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE_CONFIGS])
def test_the_shared_path_is_chosen_for_every_architecture_it_serves_and_draws_what_the_expanded_one_draws(
    tmp_path, architecture
):
    model = load(tmp_path, architecture)
    chosen, expanded = sampler_of(model), sampler_of(model, path=EXPANDED)
    assert drawn(chosen, PROMPTS) == drawn(expanded, PROMPTS)
    assert (chosen.work.path, chosen.work.why) == (SHARED, "")
    assert chosen.work.prefix_tokens == len(SHOTS)
    assert chosen.work.rows_decoded == expanded.work.rows_decoded < chosen.work.rows_plain


def test_a_model_without_attention_is_served_by_the_expanded_path_which_says_why(tiny):
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)).eval()
    sampler = Sampler(model, Sampling(m=20, max_new_tokens=4), tiny.stop_rule(()), device=torch.device("cpu"))
    found = {a.key: a.samples for a in sampler.sample(PROMPTS)}
    for prompt in PROMPTS:
        assert sum(s.count for s in found[prompt.key]) == 20
        for s in found[prompt.key]:
            logits = model(torch.tensor([[*prompt.ids, *s.ids]])).logits[0, len(prompt.ids) - 1 : -1]
            plain = logits.double().log_softmax(-1).gather(-1, torch.tensor(s.ids)[:, None]).sum()
            assert s.logprob == pytest.approx(float(plain), abs=1e-4)
    assert sampler.work.path == EXPANDED
    assert sampler.work.why


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_without_a_cache_the_same_samples_are_drawn(tmp_path, architecture):
    model = load(tmp_path, architecture)
    assert drawn(sampler_of(model, path=REREAD), PROMPTS) == drawn(sampler_of(model, path=SHARED), PROMPTS)


def test_attention_that_is_not_what_it_seems_is_found_out(tiny, monkeypatch):
    real = TreeDecoder.extend
    monkeypatch.setattr(TreeDecoder, "extend", lambda *a, **k: real(*a, **k) * 1.5)
    sampler = sampler_of(tiny)
    list(sampler.sample(PROMPTS))
    assert sampler.work.path == EXPANDED
    assert "differ" in sampler.work.why


def test_the_models_own_attention_is_back_afterwards(tiny):
    before = tiny.model.config._attn_implementation
    list(sampler_of(tiny, path=SHARED).sample(PROMPTS))
    assert tiny.model.config._attn_implementation == before


def test_keys_and_values_of_prompts_do_not_depend_on_m(tmp_path):
    model = load(tmp_path)
    sizes = []
    for m in (5, 200):
        sampler = sampler_of(model, m=m)
        sampler.path = SHARED
        flight = sampler._take_off(PROMPTS)
        list(flight.run(engine_module.deque(PROMPTS), None))
        store = flight.decoder.store
        places = (store.prefix, store.tails)
        sizes.append([sum(part.numel() for pair in place.values() for part in pair) for place in places])
    assert sizes[0] == sizes[1]


@pytest.mark.long
def test_a_longer_run_holds_no_more_at_once(tmp_path):
    model = load(tmp_path)
    rng = np.random.default_rng(0)
    many = [Prompt(f"k{i}", (*SHOTS, *rng.integers(3, 20, rng.integers(1, 6)).tolist())) for i in range(160)]
    peaks = []
    for prompts in (many[:40], many):
        sampler = sampler_of(model, path=SHARED, max_rows=100)
        list(sampler.sample(prompts))
        peaks.append(sampler.work.peak_kv_bytes)
    assert peaks[1] <= 1.3 * peaks[0]


def test_answers_come_while_others_are_still_being_written(tmp_path):
    model = load(tmp_path, scale=4.0)
    many = [Prompt(f"k{i}", (*SHOTS, 3 + i % 20, 4 + i % 7)) for i in range(60)]
    asked = []

    class Watcher:
        def watching(self, _, _batch):
            from contextlib import nullcontext

            return nullcontext()

        def prefilled(self, batch):
            asked.extend(batch.keys)

    first = next(iter(sampler_of(model, path=SHARED, max_rows=20).sample(many, Watcher())))
    assert len(asked) < len(many)
    assert first.key in asked


@pytest.mark.parametrize("fails_at", [0, 3, 6])
def test_out_of_memory_halves_the_budget_and_changes_no_sample(tmp_path, monkeypatch, fails_at):
    model = load(tmp_path)
    wanted = drawn(sampler_of(model, path=SHARED, max_rows=64), PROMPTS)
    real, calls = TreeDecoder.extend, []

    def extend(*args, **kwargs):
        calls.append(1)
        if len(calls) == fails_at + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(TreeDecoder, "extend", extend)
    sampler = sampler_of(model, path=SHARED, max_rows=64)
    assert drawn(sampler, PROMPTS) == wanted
    assert sampler.work.restarts > 0


def test_a_question_that_never_fits_is_one_clear_error(tmp_path, monkeypatch):
    def extend(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TreeDecoder, "extend", extend)
    with pytest.raises(UserError, match="out of GPU memory with a single question; lower"):
        drawn(sampler_of(load(tmp_path), path=SHARED), PROMPTS)


def test_little_memory_gives_questions_up_and_asks_them_again(tmp_path, monkeypatch):
    model = load(tmp_path)
    wanted = drawn(sampler_of(model, path=SHARED), PROMPTS)
    tight = engine_module.Budget(rows=200, positions=180)
    monkeypatch.setattr(engine_module.Budget, "of", classmethod(lambda *_a, **_k: tight))
    sampler = sampler_of(model, path=SHARED)
    assert drawn(sampler, PROMPTS) == wanted
    assert sampler.work.restarts > 0


def test_the_prefix_leaves_every_prompt_a_token_of_its_own():
    same = [Prompt("a", (1, 2, 3)), Prompt("b", (1, 2, 3, 4))]
    assert shared_prefix(same) == 2
    assert shared_prefix([Prompt("a", (1,)), Prompt("b", (1, 2))]) == 0
    assert shared_prefix(PROMPTS) == len(SHOTS)
    assert shared_prefix([Prompt("a", (1, 2, 3))]) == 2


def test_expanded_rows_are_merged_too(tiny):
    decoder = ExpandedDecoder(tiny.model, tiny.device)
    decoder.read(PROMPTS, torch.arange(len(PROMPTS)), None)
    decoder.move(6, torch.arange(6), torch.tensor([0, 0, 1, 2, 3, 3]))
    assert len(decoder.mask) == 6
    assert math.isclose(decoder.nbytes, decoder.cache.layers[0].keys.nbytes * 2 * 3)


def test_a_prefix_of_the_run_is_read_once_for_all_calls(tmp_path, monkeypatch):
    model, read = load(tmp_path), []
    wanted = drawn(sampler_of(model, path=SHARED), PROMPTS)
    real = PrefixPass.attend
    monkeypatch.setattr(PrefixPass, "attend", lambda self, call: (read.append(call.layer), real(self, call))[1])
    sampler = sampler_of(model, path=SHARED, prefix=SHOTS)
    assert drawn(sampler, PROMPTS[:2]) + drawn(sampler, PROMPTS[2:]) == wanted
    assert read == list(range(model.model.config.num_hidden_layers))
    with pytest.raises(ValueError, match="must begin with the prefix"):
        drawn(sampler, [Prompt("other", (9, *PROMPTS[0].ids))])
    with pytest.raises(ValueError, match="be longer than it"):
        drawn(sampler, [Prompt("bare", tuple(SHOTS))])
