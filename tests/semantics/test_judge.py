"""A judge on loopback: each distinct thing is asked once, ever; what it fails to say is counted and not guessed."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from openai import OpenAI

from semcal import Question, UserError
from semcal.models.connection import ChatModel
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.judge import Decisions, Judge

Q = Question(id="q", text="Which city?", answers=("Paris",))
CITY = {"paris": "Paris", "capital of france": "the French capital", "lyon": "Lyon", "who knows": None}
SAME = {frozenset(("paris", "french capital"))}


def rule(prompt):
    """A judge that knows four answers."""
    if found := re.search(r"^Answer: (.*)$", prompt, re.MULTILINE):
        named = [short for said, short in CITY.items() if said in found[1].lower()]
        return json.dumps({"answer": named[-1] if named else found[1]})
    pair = re.findall(r"^(?:First|Second) answer: (.*)$", prompt, re.MULTILINE)
    return f"```json\n{json.dumps({'same': frozenset(pair) in SAME})}\n```"


@contextmanager
def judge_server(reply=rule, trouble=()):
    """A chat endpoint; each number in `trouble` is a status it answers with before it works."""
    prompts, left = [], list(trouble)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            assert body["temperature"] == 0
            status = left.pop(0) if left else 200
            if status == 200:
                prompts.append(body["messages"][0]["content"])
                text = json.dumps({"choices": [{"message": {"content": reply(prompts[-1])}}]})
            else:
                text = json.dumps({"error": {"message": "no"}})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", prompts
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(OpenAI, "_calculate_retry_timeout", lambda *_: 0.01)


def judge(url, folder, **settings):
    return Judge(ChatModel(url, "wise", **settings).ask, "wise", Decisions(folder / "judge.jsonl"))


TEXTS = ["It is Paris.", "the capital of France", "Lyon", "who knows", "paris", "LYON!"]


def test_answers_are_shortened_compared_and_sorted(tmp_path):
    with judge_server() as (url, prompts):
        (found,) = collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [TEXTS], "sentence")
        assert found.classes == ("paris", "paris", "lyon", UNPARSED, "paris", "lyon")
        assert found.gold == {"paris"}
        compared = [p for p in prompts if "First answer" in p]
        assert len(compared) == 3  # of lyon, paris, french capital
        assert len(prompts) == len(set(prompts)) == 3 + 5  # "paris" is asked once, whoever says it
        (backward,) = collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [TEXTS[::-1]], "sentence")
        assert backward.classes == found.classes[::-1]


def test_a_second_pass_asks_nothing_and_a_torn_line_is_passed_over(tmp_path):
    with judge_server() as (url, prompts):
        first = collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [TEXTS], "sentence")
        asked = len(prompts)
        again = judge(url, tmp_path)
        assert collapse_blind(Clustered(again, whole=True), [Q], [TEXTS], "sentence") == first
        assert (len(prompts), again.asked) == (asked, 0)
        file = tmp_path / "judge.jsonl"
        file.write_bytes(file.read_bytes()[:-10])  # killed while writing
        assert collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [TEXTS], "sentence") == first
        assert len(prompts) == asked + 1
        assert collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [TEXTS], "sentence") == first
        assert len(prompts) == asked + 1


@pytest.mark.parametrize("nonsense", ["yes", "{}", '{"same": "yes"}', '{"answer": 3}', '{"same": tru'])
def test_what_cannot_be_read_is_asked_once_more_and_then_counted(tmp_path, nonsense):
    with judge_server(lambda prompt: nonsense if "First answer" in prompt or "Lyon" in prompt else rule(prompt)) as (
        url,
        prompts,
    ):
        one = judge(url, tmp_path)
        (found,) = collapse_blind(
            Clustered(one, whole=True), [Q], [["Paris", "the capital of France", "Lyon"]], "sentence"
        )
        assert found.classes == ("paris", "capital of france", UNPARSED)
        assert one.failures == {"shorten": 1, "compare": 1}
        assert one.asked == len(prompts) == 3 + 1 + 2  # both failures were asked about twice
        retry = judge(url, tmp_path)  # failures are not kept: another pass tries them again
        collapse_blind(Clustered(retry, whole=True), [Q], [["Lyon"]], "sentence")
        assert retry.asked == 2


def test_trouble_that_passes_is_retried(tmp_path):
    with judge_server(trouble=[429, 500]) as (url, _):
        (found,) = collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [["paris"]], "concise")
        assert found.classes == ("paris",)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refused a request: 401 no"), (500, "failed 2 times, last: 500 no")]
)
def test_trouble_that_stays_is_one_line_and_keeps_what_was_decided(tmp_path, status, says):
    with judge_server() as (url, prompts):
        collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [["paris"]], "concise")
        before = len(prompts)
    with judge_server(trouble=[status] * 99) as (url, _), pytest.raises(UserError, match=re.escape(says)):
        collapse_blind(Clustered(judge(url, tmp_path, tries=2), whole=True), [Q], [["Lyon"]], "concise")
    with judge_server() as (url, prompts):
        collapse_blind(Clustered(judge(url, tmp_path), whole=True), [Q], [["paris"]], "concise")
        assert (before, prompts) == (1, [])


def test_a_judge_that_is_down_is_one_line(tmp_path):
    with pytest.raises(UserError, match="failed: "):
        judge("http://127.0.0.1:9/v1", tmp_path, tries=1).cluster([Q], [["a"]])


def test_an_invalid_address_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="is not a valid address"):
        judge("wise.example", tmp_path)


def test_decisions_that_cannot_be_kept_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    decisions = Decisions(tmp_path / "file" / "judge.jsonl")
    with pytest.raises(UserError, match="cannot write decisions"):
        decisions.add("k", 1)
