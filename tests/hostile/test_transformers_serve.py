"""A real `transformers serve` on loopback, and checkpoints whose generation configs change what is drawn."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

from semcal import LanguageModel, UserError
from semcal.models.served import Endpoint, ServedModel
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt, Sampling
from tests.conftest import save_checkpoint
from tests.servers import transformers_serve

pytestmark = pytest.mark.long

TEXT = "green answer two"  # continued by "green" in most samples
ENDS = "two answer one"  # at which most answers end at once
M = 60
LIKELY = 5  # "green"
NEUTRALISED = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [LIKELY],
    "begin_suppress_tokens": [LIKELY],
    "bad_words_ids": [[LIKELY]],
    "sequence_bias": [[[LIKELY], -9.0]],
    "min_new_tokens": 2,
    "min_p": 0.3,
    "top_k": 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of one server for every checkpoint, which it loads when a request names it."""
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


def checkpoint(folder: Path, **generation) -> Path:
    save_checkpoint(folder, scale=4.0)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True} | generation))
    return folder


def law_of(folder: Path, text: str) -> Counter:
    """The exact probabilities of answers of at most two tokens."""
    local = LanguageModel.load(folder, device="cpu")
    (exact,) = enumerate_answers(
        local.model,
        [Prompt("q", local.encode(text))],
        Sampling(max_new_tokens=2),
        local.stop_rule(()),
        limits=SearchLimits(1e-4, 10_000),
    )
    law = Counter()
    for outcome in exact.outcomes:
        law[local.decode(outcome.ids)] += math.exp(outcome.logprob)
    return law


def agrees(server: str, folder: Path, text: str) -> float:
    """The p-value of a chi-square test of served answers against the exact law."""
    model = ServedModel.connect(Endpoint(server, str(folder), server="transformers", concurrency=2))
    ((_, replies),) = model.answer([("q", text)], Sampling(m=M, max_new_tokens=2))
    law, drawn = law_of(folder, text), Counter()
    for r in replies:
        drawn[r.text] += r.count
    likely = [found for found, p in law.items() if p * M >= 5]
    seen, awaited = [drawn[t] for t in likely], [law[t] * M for t in likely]
    return float(stats.chisquare([*seen, M - sum(seen)], [*awaited, M - sum(awaited)]).pvalue)


RIGHT_BEFORE = {"repetition_penalty", "no_repeat_ngram_size", "min_p", "top_k"}  # the version before sent these


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.held_before) if name in RIGHT_BEFORE else name for name in NEUTRALISED],
)
def test_a_setting_of_the_checkpoint_is_switched_off(server, tmp_path, monkeypatch, name):
    folder = checkpoint(tmp_path / "model", **{name: NEUTRALISED[name]})
    text = ENDS if name == "min_new_tokens" else TEXT
    assert agrees(server, folder, text) > 1e-4
    monkeypatch.setattr("semcal.models.dialects.neutral", lambda *_: {})
    assert agrees(server, folder, text) < 1e-4, "the server does not apply the setting, so the test shows nothing"


@pytest.mark.parametrize(("name", "value"), [("forced_eos_token_id", 1), ("top_h", 0.3)])
def test_a_setting_that_nothing_switches_off_is_refused(server, tmp_path, name, value):
    folder = checkpoint(tmp_path / "model", **{name: value})
    with pytest.raises(UserError, match=name):
        ServedModel.connect(Endpoint(server, str(folder), server="transformers"))
