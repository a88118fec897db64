"""A running vLLM as this side sees it, with a stand-in that answers as `vllm serve` does: what is asked, and what is
refused in one line. A real one is in test_vllm_engine.py and test_vllm_served_cell.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest

from semcal import UserError
from semcal.models.connection import Connection
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
from semcal.sampling.vllm.vllm_server import Expected, VllmServer, serve_command
from tests.servers import StandIns

PROMPTS = [Prompt("a", (2, 3)), Prompt("b", (2, 3, 4))]
EXPECTED = Expected("FOLDER", None, "float32", layers=2, width=3, vocabulary=10)
MODEL = {"dtype": "torch.float32", "generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
MODEL |= {"max_logprobs": 20, "override_generation_config": {}}

SIZES = {"layers": 2, "width": 3, "vocabulary": 10, "torch": "2", "device": "cuda"}


class Vllm(BaseHTTPRequestHandler):
    """Counts up from the length of the prompt, and shows a stream that holds the number of its token."""

    model, cache = MODEL, {"enable_prefix_caching": True}
    sizes = SIZES
    reads, develops, owner, cached = True, True, "vllm", False
    requests: list[tuple[str, str, dict[str, Any]]]
    wanted: dict[str, list[int]]
    found: set[str]

    def do_GET(self) -> None:
        shown = {"vllm_config": {"model_config": self.model, "cache_config": self.cache}}
        found = {
            "/v1/models": {"data": [{"id": "m", "owned_by": self.owner, "root": "elsewhere", "max_model_len": 64}]},
            "/version": {"version": "0.32.0"},
            "/server_info?config_format=json": shown if self.develops else None,
        }
        self._send(found[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.headers["X-Request-Id"] or ""
        self.requests.append((self.path, name, body))
        if self.path == "/v1/completions":
            if not self.cached or "cache_salt" in body:
                self.found.add(name)
            self._send({"choices": [self._choice(body) for _ in range(body["n"])]})
        elif not self.develops or not self.reads:
            self._send(None)
        else:
            self._send({"results": [getattr(self, body["method"])(*body["args"])]})

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = [2 + (len(body["prompt"]) + i) % 8 for i in range(body["max_tokens"])]
        return {
            **{"token_ids": ids, "prompt_token_ids": body["prompt"], "finish_reason": "length"},
            "logprobs": {"token_logprobs": [-1.0] * len(ids), "top_logprobs": [{f"token_id:{i}": -1.0} for i in ids]},
        }

    def semcal_facts(self) -> dict[str, Any]:
        return self.sizes

    def semcal_read(self, hooks: list[list[Any]], wanted: dict[str, list[int]]) -> None:
        assert hooks == [[0, True], [1, False]]
        self.wanted.update(wanted)

    def semcal_take_coded(self, name: str) -> dict[str, Any]:
        if name not in self.found:
            return {"missing": self.wanted[name]}
        places = self.wanted[name]
        values = np.repeat(np.array(places, "<f4"), 6).reshape(len(places), 2, 3)
        coded = base64.b64encode(values.tobytes()).decode()
        return {"missing": [], "values": coded, "shape": list(values.shape), "token_ids": [2 + p for p in places]}

    def semcal_forget(self, names: list[str]) -> None:
        pass

    def _send(self, reply: Any) -> None:
        content = json.dumps(reply or {"detail": "Not Found"}).encode()
        self.send_response(404 if reply is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Kept:
    """What is read, by question."""

    layers: tuple[str, ...] = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post")

    def __init__(self) -> None:
        self.found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def places(self, key: str) -> list[int]:
        return [0, 1] if key == "a" else [2]

    def keep(self, key: str, values: np.ndarray, token_ids: np.ndarray) -> None:
        self.found[key] = values, token_ids


@pytest.fixture
def stand_ins() -> Iterator[StandIns]:
    servers = StandIns()
    yield servers
    servers.stop()


def served(stand_ins: StandIns, **wrong: Any) -> tuple[VllmServer, type[Vllm]]:
    handler = type("Other", (Vllm,), {"requests": [], "wanted": {}, "found": set()} | wrong)
    url = stand_ins.start(handler)
    return VllmServer(lambda: Connection(url, tries=1, timeout=5, api_key_env="NONE"), EXPECTED), handler


def sample(engine: VllmServer, reader: Kept | None = None):
    engine.fit(10)
    rule = StopRule(lambda ids: "".join(map(str, ids)), (), [1], 10)
    return {a.key: a.samples for a in engine.sample(PROMPTS, Sampling(m=5, max_new_tokens=3), rule, reader)}


@pytest.mark.parametrize("cached", [False, True])
def test_one_request_a_question_gives_its_answers_and_what_was_read(stand_ins, cached):
    engine, handler = served(stand_ins, cached=cached)
    kept = Kept()
    found = sample(engine, kept)
    assert {key: [(s.ids, s.count, s.logprob) for s in own] for key, own in found.items()} == {
        "a": [((4, 5, 6), 5, -3.0)], "b": [((5, 6, 7), 5, -3.0)],
    }  # fmt: skip
    assert {key: (values[:, 0, 0].tolist(), ids.tolist()) for key, (values, ids) in kept.found.items()} == {
        "a": ([0, 1], [2, 3]), "b": ([2], [4]),
    }  # fmt: skip
    asked = [(name, body) for path, name, body in handler.requests if path == "/v1/completions"]
    assert len({name for name, _ in asked}) == 2
    assert [body["n"] for _, body in asked if "cache_salt" not in body] == [5, 5]
    assert len(asked) == (4 if cached else 2)  # those in the cache are read once more, one token each
    assert all(body["n"] == body["max_tokens"] == 1 for _, body in asked if "cache_salt" in body)
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "model": "m"}
    assert all(neutral.items() <= body.items() for _, body in asked)
    assert (engine.facts["version"], engine.facts["device"], engine.facts["serves"]) == ("0.32.0", "cuda", "elsewhere")


def test_first_tokens_are_counted_and_their_probabilities_read(stand_ins):
    engine, _ = served(stand_ins)
    engine.fit(10)
    assert engine.first_tokens(PROMPTS, Sampling(m=7)) == [({4: 7}, {4: -1.0}), ({5: 7}, {5: -1.0})]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": MODEL | {"logprobs_mode": "raw_logprobs"}}, "runs with logprobs_mode raw_logprobs; start it by"),
        ({"model": MODEL | {"generation_config": "auto"}}, "runs with generation_config auto; start it by"),
        ({"model": MODEL | {"dtype": "torch.float16"}}, "runs with dtype float16; start it by"),
        ({"model": MODEL | {"max_logprobs": 5}}, "runs with max_logprobs 5; start it by"),
        ({"cache": {"enable_prefix_caching": False}}, "runs with enable_prefix_caching False; start it by"),
        ({"owner": "sglang"}, "is no vLLM .*'sglang'.*; start one by"),
        ({"reads": False}, "shows no activations .*404.*; start it with the plugin, by"),
        ({"develops": False}, "shows no activations .*404.*; start it with the plugin, by"),
        (
            {"sizes": SIZES | {"layers": 9}},
            r"serves elsewhere, which is not FOLDER \(layers 9 for 2\); start it by",
        ),
    ],
)
def test_a_server_that_is_not_fit_is_refused_with_the_command_that_starts_one(stand_ins, wrong, said):
    engine, _ = served(stand_ins, **wrong)
    with pytest.raises(UserError, match=said) as refused:
        sample(engine, Kept())
    assert serve_command(EXPECTED, 10) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_server_that_shows_neither_settings_nor_activations_may_sample(stand_ins):
    engine, _ = served(stand_ins, develops=False)
    assert sample(engine).keys() == {"a", "b"}


def test_a_server_that_draws_what_the_checkpoint_does_not_know_is_refused(stand_ins):
    engine, _ = served(stand_ins)
    engine.model = replace(EXPECTED, vocabulary=6)
    with pytest.raises(
        UserError, match=r"serves elsewhere, which is not FOLDER \(it draws token [67] of 6\); start it by"
    ):
        sample(engine)


def test_a_context_that_is_too_short_is_said(stand_ins):
    engine, _ = served(stand_ins)
    with pytest.raises(UserError, match=r"has room for 64 tokens, and prompt and answer need 65; start it by `.* 65 "):
        engine.fit(65)


def test_an_address_where_nothing_listens_is_said():
    engine = VllmServer(lambda: Connection("http://127.0.0.1:9/v1", tries=2, timeout=5, api_key_env="NONE"), EXPECTED)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1 failed: .*; check that the server is running"):
        engine.fit(10)


def test_activations_that_never_come_are_said(stand_ins):
    class Renames(Vllm):
        def semcal_take_coded(self, name: str) -> dict[str, Any]:
            return {"missing": self.wanted[name]}

    engine, _ = served(stand_ins, semcal_take_coded=Renames.semcal_take_coded)
    with pytest.raises(UserError, match="no activations of a request by its X-Request-Id; ask the server itself"):
        sample(engine, Kept())
