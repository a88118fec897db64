"""Served models: a real `transformers serve` on loopback, and a server that misbehaves in every way there is."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler

import pytest
from openai import OpenAI
from scipy import stats

from semcal import LanguageModel, UserError, sample
from semcal.models.served import Endpoint, ServedModel
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt, Sampling
from tests.conftest import save_checkpoint
from tests.servers import StandIns, free_port, transformers_serve

pytestmark = pytest.mark.long

TEXT = "the answer is red"


# ---- the real thing ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory):
    """(address, folder) of a checkpoint behind `transformers serve`, whose own defaults would truncate."""
    folder = save_checkpoint(tmp_path_factory.mktemp("served") / "llama", scale=1.5)
    defaults = json.loads((folder / "generation_config.json").read_text())
    defaults |= {"do_sample": True, "top_k": 3, "repetition_penalty": 1.7, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    with transformers_serve(folder / "log", str(folder)) as url:
        yield url, folder


def test_transformers_serve_draws_from_the_model_itself(transformers_server):
    url, folder = transformers_server
    model = ServedModel.connect(Endpoint(url, str(folder), concurrency=2))
    assert model.server == "transformers"
    m = 1500
    ((key, replies),) = model.answer([("q", TEXT)], Sampling(m=m, max_new_tokens=2))
    assert key == "q"
    assert sum(r.count for r in replies) == m
    local = LanguageModel.load(folder, device="cpu")
    rule = local.stop_rule(())
    (exact,) = enumerate_answers(
        local.model,
        [Prompt("q", local.encode(TEXT))],
        Sampling(max_new_tokens=2),
        rule,
        limits=SearchLimits(1e-4, 10_000),
    )
    law = Counter()
    for outcome in exact.outcomes:
        law[local.decode(outcome.ids)] += math.exp(outcome.logprob)
    drawn = Counter()
    for r in replies:
        drawn[r.text] += r.count
    likely = [text for text, p in law.items() if p * m >= 5]
    seen, awaited = [drawn[t] for t in likely], [law[t] * m for t in likely]
    assert sum(awaited) < m - 5, "the tail must be there to be drawn"
    result = stats.chisquare([*seen, m - sum(seen)], [*awaited, m - sum(awaited)])
    assert result.pvalue > 1e-3
    assert model.work.honours_n is False
    assert not model.work.logprobs
    assert model.work.check.startswith("not checked")


def test_a_served_model_is_sampled_like_any_other(transformers_server):
    url, folder = transformers_server
    model = ServedModel.connect(Endpoint(url, str(folder)))
    (answers,) = sample(model, [TEXT], m=6, max_new_tokens=3)
    assert sum(a.count for a in answers) == 6
    assert all(a.logprob is None and a.ids == () for a in answers)


# ---- a server that misbehaves --------------------------------------------------------------------------------------


class Script:
    """What a server answers to each completion request in turn; the last entry for ever."""

    def __init__(self, *answers, owner="vllm"):
        self.answers, self.owner, self.bodies = list(answers), owner, []


def completion(n, text="yes", **extra):
    return {"choices": [{"text": text, "index": i, "finish_reason": "stop"} | extra for i in range(n)]}


@pytest.fixture
def serve():
    stand_ins = StandIns()

    def start(script: Script) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, status, body: bytes, headers=(), length=None):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                listed = {"data": [{"id": "m", "owned_by": script.owner}]}
                self.reply(200, json.dumps(listed).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script.bodies.append(body)
                answer = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
                if callable(answer):
                    answer = answer(body)
                if isinstance(answer, dict):
                    self.reply(200, json.dumps(answer).encode())
                elif answer == "truncated":
                    self.reply(200, b'{"choices": [{"te', length=400)
                elif answer == "slow":
                    time.sleep(1.0)
                    self.reply(200, json.dumps(completion(body["n"])).encode())
                elif isinstance(answer, str):
                    self.reply(200, answer.encode())
                else:
                    self.reply(answer, b'{"error": {"message": "busy"}}', [("Retry-After", "0")])

        return stand_ins.start(Handler)

    yield start
    stand_ins.stop()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(OpenAI, "_calculate_retry_timeout", lambda *_: 0.01)


def answers_of(url, m=4, prompts=(("q", "x"),), **settings):
    model = ServedModel.connect(Endpoint(url, tries=3, timeout=0.5, concurrency=2))
    return model, dict(model.answer(list(prompts), Sampling(m=m) if not settings else Sampling(m=m, **settings)))


@pytest.mark.parametrize(
    "trouble",
    [429, 500, 503, "no json", "truncated", "slow", {"choices": []}, {"choices": [{"text": None}]}, {"oops": 1}],
)
def test_trouble_that_passes_is_retried(serve, trouble):
    model, found = answers_of(serve(Script(trouble, completion(4))))
    assert [(r.text, r.count) for r in found["q"]] == [("yes", 4)]
    assert model.work.retries == 1


@pytest.mark.parametrize("trouble", [429, 500, "no json", "truncated", {"choices": []}])
def test_trouble_that_stays_is_one_clear_error_and_finished_questions_are_kept(serve, trouble):
    model = ServedModel.connect(Endpoint(serve(Script(completion(4), trouble)), tries=2, concurrency=1))
    answers = model.answer([("a", "x"), ("b", "y")], Sampling(m=4))
    assert next(answers)[0] == "a"
    with pytest.raises(UserError, match=r"failed 2 times, last: .*; check that the server is running"):
        next(answers)


def test_a_refusal_is_repeated_once_without_the_neutral_values(serve):
    script = Script(400)
    with pytest.raises(UserError, match="refused a request: 400 busy"):
        answers_of(serve(script))
    assert len(script.bodies) == 2
    assert "presence_penalty" not in script.bodies[1]


def test_a_server_that_is_down_is_one_clear_error():
    with pytest.raises(UserError, match="failed 2 times, last: ConnectError"):
        ServedModel.connect(Endpoint(f"http://127.0.0.1:{free_port()}/v1", tries=2))
    with pytest.raises(UserError, match="'localhost:8000' is not a valid address; expected"):
        ServedModel.connect(Endpoint("localhost:8000"))


def test_fewer_choices_than_asked_for_are_made_up_with_other_seeds(serve):
    script = Script(lambda body: completion(min(3, body["n"])))
    model, found = answers_of(serve(script), m=10)
    assert sum(r.count for r in found["q"]) == 10
    assert [b["n"] for b in script.bodies] == [10, 7, 4, 1]
    assert len({b["seed"] for b in script.bodies}) == 4
    assert model.work.honours_n


def test_a_server_that_ignores_n_is_asked_again_and_again(serve):
    model, found = answers_of(serve(Script(lambda _: completion(1))), m=5, prompts=[("a", "x"), ("b", "y")])
    assert {k: sum(r.count for r in v) for k, v in found.items()} == {"a": 5, "b": 5}
    assert not model.work.honours_n


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "min_tokens": 0}),
        ("sglang", {"top_k": -1, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "min_tokens": 0}),
        ("llamacpp", {"top_k": 0, "repeat_penalty": 1.0}),
    ],
)
def test_what_a_server_would_add_is_switched_off(serve, owner, expected):
    script = Script(completion(4), owner=owner)
    answers_of(serve(script))
    assert expected.items() <= script.bodies[0].items()
    assert script.bodies[0]["top_p"] == 1.0
    assert script.bodies[0]["temperature"] == 1.0


def test_stated_probabilities_unmask_a_server_that_truncates(serve):
    top = {"yes": math.log(0.3), "no": math.log(0.2)}

    def choices(*drawn):
        def answer(body):
            said = {"token_logprobs": [-1.2, 0.0], "top_logprobs": [top, {".": 0.0}]}
            tokens = [drawn[i % 10] for i in range(body["n"])]
            answers = [{"text": w, "finish_reason": "stop", "logprobs": said | {"tokens": [w, "."]}} for w in tokens]
            return {"choices": answers}

        return answer

    honest, found = answers_of(serve(Script(choices(*["yes"] * 3, *["no"] * 2, *"abcde"))), m=200)
    assert honest.work.check.startswith("agrees")
    assert found["q"][0].logprob == pytest.approx(-1.2)
    with pytest.raises(UserError, match="does not sample from the model itself"):
        answers_of(serve(Script(choices(*["yes"] * 6, *["no"] * 4))), m=200)


def test_a_stop_string_that_the_server_left_in_is_cut_off(serve):
    _, found = answers_of(serve(Script(completion(4, "red\nQuestion: more"))), stop=("\n",))
    assert [(r.text, r.finish) for r in found["q"]] == [("red", "stop")]


def test_unknown_servers_and_models_are_refused_with_the_nearest_name(serve):
    with pytest.raises(UserError, match="unknown server 'vlm', did you mean 'vllm'"):
        ServedModel.connect(Endpoint("http://127.0.0.1:1/v1", server="vlm"))
    with pytest.raises(UserError, match="does not serve 'n'"):
        ServedModel.connect(Endpoint(serve(Script(200)), "n", server="vllm"))


def test_a_study_of_a_served_model_from_questions_to_report(serve, tmp_path):
    from tests.experiments.conftest import run_dict

    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "\n".join(json.dumps({"id": f"q{i}", "question": f"colour {i}?", "answers": ["red"]}) for i in range(12))
    )
    script = Script(
        lambda body: {"choices": completion(body["n"] - 2, " red")["choices"] + completion(2, " blue")["choices"]}
    )
    study = {
        "name": "served",
        "models": [{"path": serve(script), "name": "far"}],
        "datasets": [{"kind": "jsonl", "path": str(questions), "n": 10}],
        "styles": ["concise"],
        "output": str(tmp_path / "runs"),
        "sampling": {"m": 10, "max_new_tokens": 4},
        "prompting": {"shots": 1, "exemplars": 2},
        "capture": {"positions": []},
        "probes": {"enabled": False},
        "calibration": {"bootstrap": 20, "null_draws": 20},
    }
    (run,) = run_dict(tmp_path, study, drawn=True)
    assert run.calibration()["confidence"] == pytest.approx(0.8)
    assert run.calibration()["accuracy"] == 1
    assert run.manifest()["sampling_work"][0]["server"] == "vllm"
    page = (run.folder / "report.html").read_text()
    assert "served by vllm" in page
    assert "not checked: the server gives no log-probabilities" in page
    checks = {check["name"]: check["outcome"] for check in run.manifest()["checks"]}
    assert checks["samples per question"] == "passed"
    assert checks["tokens are drawn as their stated probabilities say"] == "not made"
    assert set(checks) < set(re.findall(r"<td[^>]*>(.*?)</td>", page)), "each is listed on the page"
    assert run.intermediate().empty
    asked = len(script.bodies)
    run_dict(tmp_path, study)
    assert len(script.bodies) == asked, "a finished study asks nothing"


def test_a_server_that_dies_leaves_the_questions_it_answered(serve, tmp_path):
    from tests.experiments.conftest import run_dict

    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "\n".join(json.dumps({"id": f"q{i}", "question": f"colour {i}?", "answers": ["red"]}) for i in range(8))
    )
    script = Script(*[completion(4)] * 3, 500)
    study = {
        "name": "served",
        "models": [{"path": serve(script), "name": "far", "served": {"tries": 2, "concurrency": 1}}],
        "datasets": [{"kind": "jsonl", "path": str(questions)}],
        "styles": ["concise"],
        "output": str(tmp_path / "runs"),
        "sampling": {"m": 4},
        "prompting": {"shots": 0, "exemplars": 0},
        "capture": {"positions": []},
        "probes": {"enabled": False},
        "calibration": {"bootstrap": 20, "null_draws": 20},
    }
    with pytest.raises(UserError, match=r"failed 2 times.*(saved yet|are saved)"):
        run_dict(tmp_path, study)
    script.answers = [completion(4)]
    script.bodies.clear()
    (run,) = run_dict(tmp_path, study)
    # By question: a request of the first run may still have been under way.
    assert len({body["prompt"] for body in script.bodies}) == 5
    assert run.samples().groupby("question_id")["count"].sum().eq(4).all()
    assert not list(run.folder.rglob("*.partial.jsonl"))
