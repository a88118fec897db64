"""A real vLLM on the CPU with tiny random checkpoints, against plain passes of the same weights. Takes minutes: each
checkpoint has one engine, which all tests share; one of them is behind a server."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from probes.activations.capture import ResidualCapture
from probes.activations.engine_capture import EngineCapture
from semcal import LanguageModel
from semcal.models.connection import Connection
from semcal.sampling.checks import FAILED, PASSED, stated_apart
from semcal.sampling.decoding.paths import observe_all
from semcal.sampling.records import Answered, Prompt, Sampling
from semcal.sampling.vllm.interpreter import vllm_python
from semcal.sampling.vllm.stated_draws import stated_draws
from semcal.sampling.vllm.vllm_engine import VllmEngine, VllmModel
from semcal.sampling.vllm.vllm_sampling import VllmSampling
from semcal.sampling.vllm.vllm_server import Expected, VllmServer, serve_command
from tests.conftest import word_tokenizer
from tests.servers import vllm_by

pytestmark = pytest.mark.vllm
SIZE: dict[str, Any] = {
    **{"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
    **{"bos_token_id": 0, "eos_token_id": 1},
}
WINDOWS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
CHECKPOINTS = {
    "llama": lambda: LlamaConfig(**SIZE),
    "qwen2": lambda: Qwen2Config(**SIZE),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZE, head_dim=32, query_pre_attn_scalar=32, sliding_window=32, layer_types=WINDOWS
    ),
}
TEMPERATURES = (0.5, 1.0, 1.5)
DRAWS, LEAST_P = 600, 1e-4


def write_checkpoint(name: str, folder: Path) -> Path:
    """A random model whose next token is neither certain nor uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CHECKPOINTS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "<s>{% for m in messages %} Question: {{ m['content'] }}{% endfor %} Answer:"
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Both:
    """One checkpoint, in vLLM and as plain passes."""

    engine: VllmSampling
    model: LanguageModel

    def sample(
        self, prompts: list[Prompt], capture: EngineCapture | None = None, **settings: Any
    ) -> dict[str, Answered]:
        how = Sampling(**{"m": 8, "max_new_tokens": 6} | settings)
        return {a.key: a for a in self.engine.sample(prompts, how, self.model.stop_rule(how.stop), capture)}


@pytest.fixture(scope="module", params=[*CHECKPOINTS, "served"])
def both(request, tmp_path_factory) -> Iterator[Both]:
    room = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:
        if request.param == "served":
            folder = write_checkpoint("llama", room / "llama")
            expected = Expected(str(folder), None, "float32", layers=4, width=64, vocabulary=32)
            url, _ = stack.enter_context(vllm_by(serve_command(expected, 256), room / "log"))
            engine = VllmServer(lambda: Connection(url, tries=2, timeout=300, api_key_env="NONE"), expected)
            stack.callback(engine.stop)
        else:
            folder = write_checkpoint(request.param, room / request.param)
            engine = VllmEngine(vllm_python(), VllmModel(str(folder), device="cpu"))
            stack.callback(engine.close)
        engine.fit(256)
        yield Both(engine, LanguageModel.load(folder, device="cpu"))


def prompts_of(n: int, *, shared: int = 0, length: int = 80) -> list[Prompt]:
    """Random prompts of different lengths, each beginning with one <s>; `shared` tokens are those of all."""
    random = np.random.default_rng(n + shared)
    head = [0, *random.integers(3, 30, shared).tolist()]
    return [Prompt(f"q{i}", (*head, *random.integers(3, 30, length - shared - i).tolist())) for i in range(n)]


def law_of_two(both: Both, prompt: Prompt, temperature: float) -> dict[tuple[int, ...], float]:
    """The exact probability of every answer of two tokens, or of one that ends it."""
    model, vocabulary = both.model.model, int(SIZE["vocab_size"])

    @torch.inference_mode()
    def next_token(rows: list[tuple[int, ...]]) -> np.ndarray:
        return (model(torch.tensor(rows)).logits[:, -1].double() / temperature).softmax(-1).numpy()

    first = next_token([prompt.ids])[0]
    second = next_token([(*prompt.ids, a) for a in range(vocabulary)])
    law = {(a, b): first[a] * second[a, b] for a in range(vocabulary) for b in range(vocabulary) if a != 1}
    return law | {(1,): first[1]}


def p_value(drawn: Counter, law: dict[tuple[int, ...], float]) -> float:
    n, likely = sum(drawn.values()), []
    for answer, p in law.items():
        likely += [answer] if n * p >= 5 else []
    expected = np.array([n * law[a] for a in likely])
    observed = np.array([drawn[a] for a in likely])
    return float(stats.chisquare([*observed, n - observed.sum()], [*expected, n - expected.sum()]).pvalue)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_answers_are_drawn_from_the_exact_law_and_state_it(both, temperature):
    for prompt in prompts_of(2):
        found = both.sample([prompt], m=DRAWS, max_new_tokens=2, temperature=temperature)[prompt.key]
        law = law_of_two(both, prompt, temperature)
        assert sum(s.count for s in found.samples) == DRAWS
        assert p_value(Counter({s.ids: s.count for s in found.samples}), law) > LEAST_P
        assert max(abs(s.logprob - np.log(law[s.ids])) for s in found.samples) < 1e-3


def test_first_tokens_pass_the_check_of_the_law_and_those_of_another_temperature_fail(both):
    how = Sampling(m=250, temperature=1.0)
    found = both.engine.first_tokens(prompts_of(4), how)
    assert stated_draws(found).outcome == PASSED
    warmer = both.engine.first_tokens(prompts_of(4), replace(how, temperature=2.0))
    assert (
        stated_draws([(drawn, stated) for (drawn, _), (_, stated) in zip(warmer, found, strict=True)]).outcome == FAILED
    )


@pytest.mark.parametrize("n", [1, 16])
def test_logprobs_and_hidden_states_of_all_layers_are_those_of_plain_passes(both, n):
    """Prompts that share 64 tokens, so that all but the first read two blocks of keys and values from the cache."""
    prompts = prompts_of(n, shared=64, length=100)
    where = {p.key: {"last_prompt_token": [len(p.ids) - 1], "last_question_token": [70]} for p in prompts}
    layers = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(4))]
    for _ in range(2):  # the second time, every block is in the cache
        capture, plain = EngineCapture(layers, where), ResidualCapture(layers, where)
        observe_all(both.model.model, both.model.device, prompts, plain, padded=False)
        answered = both.sample(prompts, capture)
        drawn = [(p, answered[p.key].samples[0]) for p in prompts]
        assert stated_apart(both.model.model, both.model.device, Sampling(), drawn) < 1e-3
        for position in ("last_prompt_token", "last_question_token"):
            keys = [p.key for p in prompts]
            ours, theirs = (c.take(keys, position) for c in (capture, plain))
            assert ours.token_ids.tolist() == [p.ids[where[p.key][position][0]] for p in prompts]
            off = np.linalg.norm(ours.values - theirs.values, axis=-1) / np.linalg.norm(theirs.values, axis=-1)
            assert off.max() < 1e-3


def test_positions_that_are_in_the_cache_already_are_computed_again(both):
    [prompt] = prompts_of(1, length=90)
    both.sample([prompt])  # fills the cache
    where = {prompt.key: {"all_question_tokens": list(range(len(prompt.ids)))}}
    layers = [f"blocks.{i}.hook_resid_post" for i in range(4)]
    capture, plain = EngineCapture(layers, where), ResidualCapture(layers, where)
    both.sample([prompt], capture)
    observe_all(both.model.model, both.model.device, [prompt], plain, padded=False)
    ours, theirs = (c.take([prompt.key], "all_question_tokens") for c in (capture, plain))
    assert ours.token_ids.tolist() == list(prompt.ids)  # nothing was put in front, and nothing was left out
    assert np.abs(ours.values - theirs.values).max() < 1e-3 * np.abs(theirs.values).max()


def test_answers_depend_on_the_seed_and_the_question_alone(both):
    prompts = prompts_of(16)
    together = both.sample(prompts)
    assert both.sample(prompts) == together
    alone = both.sample([prompts[5]])["q5"]
    in_common = {s.ids: s.count for s in alone.samples}.items() & {
        s.ids: s.count for s in together["q5"].samples
    }.items()
    assert len(in_common) >= 0.8 * len(alone.samples)  # rounding may move a draw
    assert both.sample([prompts[5]], seed=1)["q5"] != alone


def test_a_chat_template_begins_with_one_bos(both):
    text = both.model.render_chat([{"role": "user", "content": "the red"}])
    prompt = Prompt("chat", both.model.encode_rendered(text))
    capture = EngineCapture(["blocks.0.hook_resid_pre"], {"chat": {"all_question_tokens": range(len(prompt.ids))}})
    both.sample([prompt], capture)
    seen = capture.take(["chat"], "all_question_tokens").token_ids.tolist()
    assert seen == list(prompt.ids)
    assert seen.count(both.model.tokenizer.bos_token_id) == 1


def test_stop_strings_across_tokens_end_an_answer_where_they_are_complete(both):
    """The end of one token and another after it, which no token holds."""
    prompts = prompts_of(4)
    free = both.sample(prompts, m=200, max_new_tokens=8, temperature=2.0)
    crossing = Counter[str]()
    for s in (s for a in free.values() for s in a.samples):
        for pair in zip(s.ids, s.ids[1:], strict=False):
            text = both.model.decode(pair).strip()[1:]  # begins within a token
            if text and not any(text in both.model.decode([i]) for i in pair):
                crossing[text] += s.count
    stop = crossing.most_common(1)[0][0]
    found = both.sample(prompts, m=200, max_new_tokens=8, temperature=2.0, stop=(stop,))
    for key, answered in found.items():
        assert sum(s.count for s in answered.samples) == 200
        expected = Counter()
        for s in free[key].samples:  # the same seeds draw the same tokens
            expected[cut_at(both, s.ids, stop)] += s.count
        same = Counter({s.ids: s.count for s in answered.samples}) & expected
        assert same.total() >= 190
        for s in answered.samples:
            assert (stop in both.model.decode(s.ids)) == (s.finish == "stop" and s.ids[-1] != 1)
            assert stop not in both.model.decode(s.ids[:-1])
    assert any(s.finish == "stop" and s.ids[-1] != 1 for a in found.values() for s in a.samples)


def cut_at(both: Both, ids: tuple[int, ...], stop: str) -> tuple[int, ...]:
    return next((ids[:k] for k in range(1, len(ids)) if stop in both.model.decode(ids[:k])), ids)


@pytest.mark.parametrize("both", ["llama"], indirect=True)  # each kill costs a start of vLLM
def test_a_process_that_is_killed_is_replaced_and_no_question_is_lost_or_doubled(both):
    prompts = prompts_of(12)
    how = Sampling(m=8, max_new_tokens=40)
    undisturbed = both.sample(prompts, max_new_tokens=40)
    assert isinstance(both.engine, VllmEngine)
    found, before = [], both.engine.pid
    for answered in both.engine.sample(prompts, how, both.model.stop_rule(())):
        found.append(answered)
        if len(found) == 1:
            os.kill(before, 9)
    assert sorted(a.key for a in found) == sorted(undisturbed)
    assert {a.key: sum(s.count for s in a.samples) for a in found} == dict.fromkeys(undisturbed, 8)
    assert both.engine.restarts == 1
    assert both.engine.pid != before
    alike = sum(a == undisturbed[a.key] for a in found)
    assert alike >= 10  # rounding may move a draw
