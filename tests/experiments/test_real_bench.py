"""The benchmark on real models, with a tiny model and a stand-in for vLLM: what it counts, compares, skips and reports."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from experiments.bench import __main__ as command
from experiments.bench import sampler_cases as sampler_bench
from experiments.bench.real import real_cases as bench
from experiments.bench.real.matrix_throughput import matrix_throughput, token_flops
from experiments.bench.real.vllm_process import Vllm
from experiments.bench.sampler_cases import Subject
from experiments.bench.timing import Case, Skipped, spent
from semcal import UserError
from semcal.sampling.records import Prompt
from semcal.sampling.vllm.interpreter import PYTHON, vllm_python

# What vllm_answers.py uses of vLLM, by plain sampling; it talks on standard output, as vLLM does.
STAND_IN = """
print("INFO: a line that is no answer")
DIES = {dies}

class SamplingParams:
    def __init__(self, **settings):
        self.__dict__.update(settings)
        assert (self.temperature, self.top_p, self.top_k, self.detokenize) == (1.0, 1.0, 0, False)

class Some:
    def __init__(self, **fields):
        self.__dict__.update(fields)

class LLM:
    def __init__(self, model, dtype, seed, **settings):
        assert settings["enable_prefix_caching"] and settings["generation_config"] == "vllm"
        if DIES:
            return
        import torch
        from transformers import AutoModelForCausalLM
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        torch.manual_seed(seed)

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, settings, use_tqdm):
        if DIES:
            raise RuntimeError("Out of luck")
        print("INFO: generating")
        return [Some(outputs=[Some(token_ids=ids) for ids in self.draw(p["prompt_token_ids"], settings)])
                for p in prompts]

    def draw(self, prompt, settings):
        torch = self.torch
        rows = torch.tensor([prompt] * settings.n)
        for _ in range(settings.max_tokens):
            logits = self.model(rows).logits[:, -1]
            rows = torch.cat([rows, torch.multinomial(logits.softmax(-1), 1)], 1)
        new = [row[len(prompt):] for row in rows.tolist()]
        return [row[: next((i + 1 for i, t in enumerate(row) if t in settings.stop_token_ids), None)] for row in new]
"""


def interpreter(folder: Path, *, dies: bool = False) -> Path:
    """An interpreter whose vLLM is the stand-in, or one that dies when it is asked."""
    (folder / "vllm.py").write_text(STAND_IN.format(dies=dies))
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def vllm(tiny, tmp_path_factory):
    vllm = bench.start_vllm(interpreter(tmp_path_factory.mktemp("vllm")), tiny)
    yield vllm
    vllm.close()


@pytest.fixture
def subject(tiny, monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "ROWS", 16)
    monkeypatch.setitem(bench.QUESTIONS, "cpu", {"generate": 4, "vllm": 4})
    prompts = tuple(Prompt(f"k{i}", (0, 3 + i)) for i in range(6))
    return Subject("tiny", tiny, prompts, 3, ("red",))


def test_all_three_are_compared_and_end_their_answers_at_the_same_tokens(subject, vllm):
    case = bench.compare(subject, vllm)
    found = bench.asked_vllm(vllm, subject, subject.prompts)
    assert vllm.cpu_seconds() > 0
    figures = json.loads(json.dumps(case.to_dict()))
    assert figures["ratio"] > 0
    assert figures["vllm_ratio"] > 0
    assert min(figures["answers_p"], figures["vllm_answers_p"]) > bench.LEAST_P
    assert figures["rows_plain"] >= figures["rows_decoded"] > 0
    assert figures["share"] == pytest.approx(figures["gflop"] / figures["ours_s"] / figures["gflops"])
    assert "vLLM" in case.line
    generated = bench.generated(subject, subject.prompts)
    ends = set(bench.ends_of(subject))
    for answers in (found, generated, bench.drawn_by(sampler_bench.ours(subject), subject.prompts)):
        assert answers.keys() == {p.key for p in subject.prompts}
        for drawn in answers.values():
            assert drawn.total() == bench.M
            for ids in drawn:
                assert not set(ids[:-1]) & ends
                assert len(ids) == subject.new_tokens or ids[-1] in ends


def test_one_that_draws_something_else_is_not_reported(subject, vllm, monkeypatch):
    honest = bench.asked_vllm
    monkeypatch.setattr(
        bench, "asked_vllm", lambda v, s, prompts: honest(v, s, [Prompt(p.key, p.ids[::-1]) for p in prompts])
    )
    with pytest.raises(AssertionError, match="tiny: vllm draws from a different distribution"):
        bench.compare(subject, vllm)


def test_without_vllm_its_figures_are_empty(subject):
    case = bench.compare(subject, None)
    assert {v for k, v in case.facts.items() if k.startswith("vllm")} == {None}
    assert "vLLM" not in case.line


@pytest.mark.parametrize("what", ["first tokens", "lengths"])
def test_answers_that_differ_in_one_respect_do_not_agree(what):
    rng = np.random.default_rng(0)

    def drawn(tilt: float):
        first, longer = (tilt, 0.0) if what == "first tokens" else (0.0, tilt)
        return {
            f"q{i}": Counter(
                (int(rng.random() < 0.5 + first), *[7] * int(rng.random() < 0.5 + longer)) for _ in range(50)
            )
            for i in range(8)
        }

    assert bench.agreement(drawn(0.0), drawn(0.0)) > 0.01
    assert bench.agreement(drawn(0.0), drawn(0.3)) < bench.LEAST_P


def test_operations_are_those_that_torch_counts(tiny):
    layers, head = token_flops(tiny.model)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tiny.model(torch.tensor([[3, 4, 5]]))
    counted = counter.get_flop_counts()["Global"]
    assert sum(v for k, v in counted.items() if k in (torch.ops.aten.mm, torch.ops.aten.addmm)) == 3 * (layers + head)


def test_the_throughput_is_at_least_that_of_plain_products(tiny):
    weight = tiny.model.get_output_embeddings().weight
    x = torch.randn(512, weight.shape[1])
    plain = min(spent(lambda: [x @ weight.T for _ in range(50)]).wall_s for _ in range(5)) / 50
    machine = matrix_throughput(tiny.model, 512)
    assert machine.wall > 0.01 * 2 * x.numel() * len(weight) / plain
    assert machine.cpu > 0


def test_what_is_not_here_is_skipped_with_a_line_that_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMCAL_MODELS", str(tmp_path))
    monkeypatch.delenv(PYTHON, raising=False)
    found = list(bench.real_cases("cpu"))
    assert all(isinstance(case, Skipped) for case in found)
    lines = [case.line for case in found]
    assert "engine vllm needs an environment with vLLM" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "real/gemma-concise, real/gemma-sentence",
        "real/smollm2-concise",
    ]
    assert all("python -m experiments.sample.real_models" in line for line in lines[1:])


def test_an_interpreter_that_is_none_is_refused(monkeypatch, tmp_path):
    for wrong in (tmp_path, tmp_path / "absent"):
        monkeypatch.setenv(PYTHON, str(wrong))
        with pytest.raises(UserError, match="which is no program"):
            vllm_python()


def test_an_environment_without_vllm_and_a_vllm_that_dies_end_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"No module named 'vllm'.*SEMCAL_VLLM_PYTHON"):
        Vllm(Path(sys.executable), tmp_path, "float32", device="cpu", threads=1)
    vllm = Vllm(interpreter(tmp_path, dies=True), tmp_path, "float32", device="cpu", threads=1)
    with pytest.raises(UserError, match="RuntimeError: Out of luck"):
        vllm.ask([(0, 3)], 2, 3, ())
    with pytest.raises(UserError, match="Out of luck"):
        vllm.ask([(0, 3)], 2, 3, ())
    vllm.close()


def test_cases_with_other_figures_make_tables_of_their_own_and_skipped_ones_a_line(monkeypatch):
    plain, real = Case("organism/a", 1.0, 2.0, 2.0, {"rows": 7}), Case("real/b", 1.0, 3.0, 3.0, {"share": 0.5})
    monkeypatch.setattr(sampler_bench, "sampler_cases", lambda _: iter([plain]))
    monkeypatch.setattr(bench, "real_cases", lambda _: iter([real, Skipped("real/c", "not here")]))
    app = command.typer.Typer()
    app.command()(command.bench)
    shown = CliRunner().invoke(app, ["sampler"])
    assert shown.exit_code == 0, shown.output
    assert "rows" in shown.output
    assert "share" in shown.output
    assert "real/c: skipped; not here" in shown.output
    line = CliRunner().invoke(app, ["sampler", "--json"]).stdout.splitlines()
    assert [c["case"] for c in json.loads(line[-1])["cases"]] == ["organism/a", "real/b"]
