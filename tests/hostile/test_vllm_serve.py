"""A real vLLM on loopback whose checkpoint changes what is drawn by its generation config. Needs SEMCAL_VLLM_PYTHON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, LlamaConfig

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from probes.activations.engine_capture import EngineCapture
from semcal import LanguageModel, Run
from semcal.errors import NotFromModelError, UserError
from semcal.models import served
from semcal.models.connection import Connection
from semcal.models.served import Endpoint, ServedModel
from semcal.models.stated_law import tokens_of
from semcal.sampling.checks import PASSED, stated_apart
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.vllm.stated_draws import stated_draws
from semcal.sampling.vllm.vllm_server import Expected, VllmServer
from tests.conftest import word_tokenizer
from tests.experiments.conftest import write_study
from tests.hostile.test_transformers_serve import law_of
from tests.servers import vllm_serve

pytestmark = pytest.mark.vllm
TEXTS = ("green answer two", "two answer one", "red blue", "the answer is", "one two three", "yes no")
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 3, "repetition_penalty": 1.8, "min_p": 0.2}
M = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random Llama of a size that vLLM serves on a CPU; every id of its vocabulary has a text."""
    into, tokenizer = tmp_path_factory.mktemp("vllm") / "model", word_tokenizer()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(
        **sizes, vocab_size=len(tokenizer), max_position_embeddings=256, bos_token_id=0, eos_token_id=1
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2 if "embed" in name or "lm_head" in name else 0.1)
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    file = into / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | GENERATION))
    return into


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with vllm_serve(tmp_path_factory.mktemp("log") / "vllm", folder, "--served-model-name", "tiny") as url:
        yield url


def answers(server: str, *, m: int = M, length: int = 5, **more: Any) -> tuple[ServedModel, dict]:
    model = ServedModel.connect(Endpoint(server, "tiny", concurrency=2))
    asked = [(f"q{i}", text) for i, text in enumerate(TEXTS)]
    return model, dict(model.answer(asked, Sampling(m=m, max_new_tokens=length, **more)))


def test_its_checks_agree_and_all_that_can_be_made_are(server):
    model, found = answers(server)
    checks = {check.name: check.outcome for check in model.work.checks}
    assert model.server == "vllm"
    assert model.work.refused == ()
    assert all(sum(a.count for a in own) == M for own in found.values())
    assert checks["tokens are drawn as their stated probabilities say"] == "passed"
    assert checks["tokens have the probabilities that the same text is scored with"] == "passed"
    assert checks["prompts are read as they are"] == "passed"
    assert "failed" not in checks.values()


def test_the_generation_config_of_the_checkpoint_is_overridden(server, folder):
    _, found = answers(server, m=400, length=2)
    law, drawn = law_of(folder, TEXTS[0]), Counter()
    for answer in found["q0"]:
        drawn[answer.text.strip()] += answer.count
    expected = Counter()
    for text, p in law.items():
        expected[text.strip()] += 400 * p
    likely = [text for text, n in expected.items() if n >= 5]
    seen, awaited = [drawn[t] for t in likely], [expected[t] for t in likely]
    assert stats.chisquare([*seen, 400 - sum(seen)], [*awaited, 400 - sum(awaited)]).pvalue > 1e-4


@pytest.mark.parametrize("name", ["top_p", "top_k", "repetition_penalty", "min_p"])
def test_a_setting_of_the_checkpoint_that_is_not_switched_off_is_noticed(server, monkeypatch, name):
    """As if vLLM forgot to let a request override it."""
    real = served.body

    def without(*given, **more):
        return {key: value for key, value in real(*given, **more).items() if key != name}

    monkeypatch.setattr(served, "body", without)
    with pytest.raises(NotFromModelError, match="does not sample from the model itself"):
        answers(server)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("penalty", [0.5, -0.5])
def test_a_penalty_that_reaches_the_server_is_noticed(server, monkeypatch, name, penalty):
    """As if something between added it, or a server had it by default."""
    real = served.body

    def with_penalty(*given, **more):
        return real(*given, **more) | {name: penalty}

    monkeypatch.setattr(served, "body", with_penalty)
    with pytest.raises(NotFromModelError, match="does not sample from the model itself"):
        answers(server, length=16)


def test_one_request_gives_all_answers_of_a_question_and_each_its_own(server):
    """They follow the law, too: see the test of the generation config, whose answers are those of one request."""
    model, found = answers(server)
    assert model.work.honours_n
    assert all(len(own) > M / 10 for own in found.values())
    assert answers(server)[1] == found
    other = answers(server, seed=1)[1]
    assert all(other[key] != found[key] for key in found)


# The end of one token and the beginning of the next; a part of two tokens; a whole one.
@pytest.mark.parametrize("stop", ["e t", "ree", "yes"])
def test_the_logprob_of_a_stopped_answer_is_that_of_its_tokens_and_none_behind(server, folder, monkeypatch, stop):
    kept, real = [], served.logprob

    def keeping(choice):
        kept.append((choice, real(choice)))
        return kept[-1][1]

    monkeypatch.setattr(served, "logprob", keeping)
    _, found = answers(server, length=12, stop=(stop,))
    assert not any(stop in a.text for own in found.values() for a in own)
    local = LanguageModel.load(folder, device="cpu")
    words = local.tokenizer.get_vocab()
    stopped = [(c, p) for c, p in kept if c["finish_reason"] == "stop" and c["stop_reason"] == stop]
    assert len(stopped) > M / 10
    for choice, stated in stopped[:: len(stopped) // 40 + 1]:
        ids = [words[token.strip(" ")] for token in tokens_of(choice)]
        assert stop in local.decode(ids)
        assert stop not in local.decode(ids[:-1])
        assert stated is None or abs(stated - likeliest_prompt(local, ids, stated)) < 1e-3
    assert any(stated is not None for _, stated in stopped)


@torch.inference_mode()
def likeliest_prompt(local: LanguageModel, ids: list[int], stated: float) -> float:
    """The log-probability of an answer after that prompt of which it comes nearest to what is stated."""
    found = []
    for text in TEXTS:
        prompt = local.encode(text)
        logprobs = local.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[len(prompt) + k - 1, i]) for k, i in enumerate(ids)))
    return min(found, key=lambda p: abs(p - stated))


def test_a_server_without_the_plugin_is_refused_what_it_cannot_show_and_samples_exactly(server, folder):
    """Whatever the generation config of the checkpoint says."""
    expected = Expected(str(folder), None, "float32", layers=2, width=64, vocabulary=32)
    engine = VllmServer(lambda: Connection(server, tries=2, timeout=300, api_key_env="NONE"), expected)
    engine.fit(100)
    local = LanguageModel.load(folder, device="cpu")
    prompts = [Prompt(text, local.encode(text)) for text in TEXTS]
    rule, how = local.stop_rule(()), Sampling(m=8, max_new_tokens=5)
    reader = EngineCapture(["blocks.1.hook_resid_post"], {p.key: {"last_prompt_token": [0]} for p in prompts})
    with pytest.raises(UserError, match=r"shows no activations .*404.*; start it with the plugin, by `VLLM_SERVER_DEV"):
        list(engine.sample(prompts, how, rule, reader))
    drawn = [(next(p for p in prompts if p.key == a.key), a.samples[0]) for a in engine.sample(prompts, how, rule)]
    assert len(drawn) == len(TEXTS)
    assert stated_apart(local.model, local.device, how, drawn) < 1e-3
    assert stated_draws(engine.first_tokens(prompts, replace(how, m=250))).outcome == PASSED
    assert (engine.facts["server"], engine.facts["serves"]) == (server, str(folder))


def test_a_run_goes_through_and_its_page_lists_the_checks(server, tmp_path):
    rows = [{"id": f"q{i}", "question": text, "answers": ["red"]} for i, text in enumerate(TEXTS)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = write_study(
        tmp_path,
        {
            "name": "served",
            "models": [{"path": server, "name": "tiny"}],
            "datasets": [{"kind": "jsonl", "path": str(tmp_path / "asked.jsonl"), "n": 4}],
            "styles": ["concise"],
            "output": str(tmp_path / "runs"),
            "sampling": {"m": 40, "max_new_tokens": 4},
            "prompting": {"shots": 1, "exemplars": 2},
            "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
            "capture": {"positions": []},
            "probes": {"enabled": False},
            "tracking": {"wandb": "disabled"},
        },
    )
    prepared = prepare_study(load_study(path))
    run_study(prepared, Reporter())
    run = Run.open(prepared.cells[0].folder)
    outcomes = {check["name"]: check["outcome"] for check in run.manifest()["checks"]}
    assert outcomes["tokens are drawn as their stated probabilities say"] == "passed"
    assert "failed" not in outcomes.values()
    assert "tokens are drawn as their stated probabilities say" in (run.folder / "report.html").read_text()
