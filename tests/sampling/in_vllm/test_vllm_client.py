"""This side of vLLM, with a stand-in that answers as its worker does: what is asked, cut, counted, and what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from semcal import UserError
from semcal.errors import NonFiniteError
from semcal.sampling.checks import FAILED, NOT_MADE, PASSED
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
from semcal.sampling.vllm import interpreter, vllm_engine, vllm_sampling
from semcal.sampling.vllm.interpreter import PYTHON, beyond_tested, environment_of, vllm_python
from semcal.sampling.vllm.stated_draws import stated_draws
from semcal.sampling.vllm.vllm_engine import VllmEngine, VllmModel

# Tokens 2 to 9 are the digits, 1 ends an answer. Each answer counts up from the length of its prompt; what is wrong
# with it is the name of the model.
STAND_IN = """
import json, os, sys
begin = json.loads(sys.stdin.readline())
kind, rows = begin["model"], begin["max_num_seqs"]
if kind == "unknown":
    sys.exit("ValueError: Model architectures ['Strange'] are not supported for now.")
def send(message):
    print(json.dumps(message), flush=True)
send({"ready": True, "vllm": "9.9.9" if kind == "new" else "0.32.0", "torch": "2", "device": "cpu", "settings": begin})
for line in sys.stdin:
    asked = json.loads(line)
    if kind == "greedy" and (rows or 256) > 64:
        send({"memory": "DefaultCPUAllocator: not enough memory"})
        break
    params = asked["params"]
    for number, q in enumerate(asked["questions"]):
        if kind == "mortal" and number == 1 and rows is None:
            os.kill(os.getpid(), 9)
        ids = [2 + (len(q["ids"]) + i) % 8 for i in range(params["max_tokens"])]
        if kind == "hasty" and params["stop"]:
            ids = ids[:1]
        stated = [float("nan") if kind == "broken" else -1.0] * len(ids)
        send({"question": number, "answers": [[ids, stated, params["n"] - 1], [ids[:1] + [1], stated[:2], 1]], "read": None})
    send({"done": True})
"""
PROMPTS = [Prompt("a", (2, 3)), Prompt("b", (2, 3, 4)), Prompt("c", (2, 3, 4, 5))]


def rule(*stop: str) -> StopRule:
    return StopRule(lambda ids: "".join(str(i) for i in ids if i > 1), stop, [1], 10)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    script, made = tmp_path / "worker.py", []
    script.write_text(STAND_IN)
    monkeypatch.setattr(vllm_engine, "_WORKER", script)

    def make(kind: str) -> VllmEngine:
        made.append(VllmEngine(Path(sys.executable), VllmModel(kind, device="cpu")))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answers(engine: VllmEngine, *stop: str, length: int = 4):
    engine.fit(100)
    found = list(engine.sample(PROMPTS, Sampling(m=5, max_new_tokens=length), rule(*stop)))
    assert sorted(a.key for a in found) == ["a", "b", "c"]
    assert all(sum(s.count for s in a.samples) == 5 for a in found)
    return {a.key: [(s.ids, s.count, s.finish, s.logprob) for s in a.samples] for a in found}


def test_answers_are_cut_where_the_rule_ends_them_with_the_logprob_of_what_is_left(engine):
    found = answers(engine("plain"), "56")
    assert found["a"] == [((4, 5, 6), 4, "stop", -3.0), ((4, 1), 1, "stop", -2.0)]
    assert found["b"] == [((5, 6), 4, "stop", -2.0), ((5, 1), 1, "stop", -2.0)]
    assert found["c"] == [((6, 7, 8, 9), 4, "length", -4.0), ((6, 1), 1, "stop", -2.0)]


def test_answers_that_are_alike_once_cut_are_counted_together(engine):
    assert answers(engine("plain"), "4")["a"] == [((4,), 5, "stop", -1.0)]


def test_an_answer_that_vllm_ends_too_early_is_asked_for_again_without_stop_strings(engine):
    assert answers(engine("hasty"), "56") == answers(engine("plain"), "56")


@pytest.mark.parametrize(("kind", "restarts"), [("greedy", 2), ("mortal", 1)])
def test_out_of_memory_halves_the_answers_at_once_and_changes_none(engine, kind, restarts, caplog):
    tried = engine(kind)
    assert answers(tried) == answers(engine("plain"))
    assert tried.restarts == restarts
    assert f"with {256 // 2**restarts} answers at once" in caplog.text


def test_memory_that_no_halving_helps_ends_in_one_line(engine, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_FEWEST_ROWS", 128)
    with pytest.raises(UserError, match=r"out of memory \(DefaultCPUAllocator.*\) with 128 answers at once; free some"):
        answers(engine("greedy"))


def test_a_model_that_vllm_cannot_serve_is_said_in_one_line(engine):
    with pytest.raises(
        UserError, match=r"unknown is not served: .*ValueError: Model .* not supported.*engine to hf"
    ) as e:
        engine("unknown").fit(100)
    assert "\n" not in str(e.value)


def test_another_version_is_said_once_and_goes_on(engine, caplog):
    with caplog.at_level(logging.WARNING):
        answers(engine("new"))
    assert "vLLM 9.9.9 is not a tested version (0.32 is)" in caplog.text
    assert not beyond_tested("0.32.5+cpu")
    assert beyond_tested("0.31.0")
    assert beyond_tested("dev")


def test_log_probabilities_that_are_none_name_the_question(engine):
    with pytest.raises(NonFiniteError, match="question 'a'"):
        answers(engine("broken"))


def test_a_process_that_was_abandoned_in_the_middle_is_not_asked_again(engine):
    one = engine("plain")
    one.fit(100)
    some = one.sample(PROMPTS, Sampling(m=5, max_new_tokens=4), rule())
    next(some)
    some.close()
    assert answers(one) == answers(engine("plain"))


def test_longer_prompts_start_it_with_more_room_and_shorter_ones_do_not(engine):
    one = engine("plain")
    one.fit(100)
    before = one.pid
    one.fit(128)
    assert one.pid == before
    one.fit(129)
    assert one.pid != before
    assert one.facts["settings"]["max_model_len"] == 192
    one.fit(200, context=210)  # not beyond what the model can attend to
    assert one.facts["settings"]["max_model_len"] == 210


def test_seeds_depend_on_study_and_question():
    seeds = {vllm_sampling._seed(Sampling(seed=s), k) for s in (0, 1) for k in ("a", "b")}
    assert len(seeds) == 4
    assert vllm_sampling._seed(Sampling(seed=1, m=9), "a") in seeds


# ---- what is left to the rule, and what vLLM is told ---------------------------------------------------------------


def test_only_strings_that_may_cross_tokens_are_left_to_the_text():
    assert vllm_sampling._across_tokens(rule("\n", "ab", "é", " ")) == ["ab", "é", " "]


@pytest.mark.parametrize("stop", [(), ("56",), ("4", "78"), ("9",)])
def test_the_end_of_an_answer_is_the_first_token_at_which_sampling_would_stop(stop):
    ends, random = rule(*stop), np.random.default_rng(0)
    for _ in range(50):
        ids = random.integers(1, 10, 6).tolist()
        by_step = next((k for k in range(1, 7) if ends.finished(torch.tensor(ids[k - 1 : k]), [ids[:k]])[0]), None)
        assert ends.end(ids) == by_step


# ---- where vLLM is -------------------------------------------------------------------------------------------------


def test_the_interpreter_of_the_study_comes_before_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(PYTHON, str(tmp_path / "absent"))
    assert vllm_python(sys.executable) == Path(sys.executable)
    with pytest.raises(UserError, match=rf"{PYTHON} is .*absent, which is no program; make one by"):
        vllm_python()
    with pytest.raises(UserError, match=r"python is nowhere/python, which is no program"):
        vllm_python("nowhere/python")


def test_without_any_vllm_the_line_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr(interpreter, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"none is named by `python` of the model or by SEMCAL_VLLM_PYTHON; make one"):
        vllm_python()


def test_a_device_of_several_is_the_only_one_that_is_seen(tmp_path):
    assert environment_of(tmp_path / "bin" / "python", "cuda:1", 1)["CUDA_VISIBLE_DEVICES"] == "1"
    cpu = environment_of(tmp_path / "bin" / "python", "cpu", 3)
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu["OMP_NUM_THREADS"]) == ("", "3")
    anywhere = environment_of(tmp_path / "bin" / "python", "auto", 3)
    assert anywhere["OMP_NUM_THREADS"] == "3"
    assert anywhere.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


# ---- its law -------------------------------------------------------------------------------------------------------


def drawn_from(law: list[float], stated: list[float], n: int = 400, seed: int = 0):
    counts = np.random.default_rng(seed).multinomial(n, law)
    drawn = {i: int(c) for i, c in enumerate(counts) if c}
    kept = sorted({*range(4), *drawn})  # the likeliest, and what was drawn
    return drawn, {i: float(np.log(stated[i])) for i in kept}


LAW = [0.5, 0.2, 0.1, 0.1, *[0.1 / 50] * 50]


def test_draws_from_the_stated_law_pass_with_many_seeds():
    assert all(stated_draws([drawn_from(LAW, LAW, seed=s)]).outcome == PASSED for s in range(200))


@pytest.mark.parametrize("power", [0.7, 1.5])
def test_draws_at_another_temperature_fail(power):
    other = (np.array(LAW) ** power / (np.array(LAW) ** power).sum()).tolist()
    assert stated_draws([drawn_from(other, LAW, seed=s) for s in range(4)]).outcome == FAILED


def test_draws_without_the_tail_fail():
    top = [p if i < 4 else 0.0 for i, p in enumerate(LAW)]
    cut = (np.array(top) / sum(top)).tolist()
    assert stated_draws([drawn_from(cut, LAW, seed=s) for s in range(4)]).outcome == FAILED


def test_prompts_that_leave_no_choice_show_nothing():
    assert stated_draws([({3: 400}, {3: -1e-9})]).outcome == NOT_MADE


def test_messages_to_the_worker_are_plain_json():
    assert json.loads(json.dumps(vllm_sampling._law(Sampling(temperature=0.7)))) == {
        "n": 50, "temperature": 0.7, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
