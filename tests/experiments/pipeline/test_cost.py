"""The estimate of a cell: more work never costs less, the sizes of models are those of their weights or their names."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.pipeline.cost import Accelerator, Shape, Workload, activations, cost
from experiments.pipeline.shapes import parameters_in, shape_of
from semcal import LanguageModel
from semcal.sampling.engine import kv_values
from tests.conftest import CONFIGS, save_checkpoint

SEVEN = Shape(7e9, 28, 3584, 2 * 28 * 4 * 128, 152_064, 32_768, "table")
WORK = Workload(
    questions=500,
    m=50,
    prefix=3,
    tail=320.0,
    longest=400,
    answer=20.0,
    most=64,
    reread=0.0,
    rows=1765,
    captured=29 * 3584,
    captured_bytes=4,
    shard=256,
    dtype="bfloat16",
)
MORE = {
    "questions": (1, 7, 40, 500, 5_000),
    "m": (2, 10, 50, 400),
    "tail": (5.0, 320.0, 3_000.0),
    "answer": (1.5, 20.0, 64.0),
    "most": (64, 256, 2_048),
    "reread": (0.0, 300.0),
}


@pytest.mark.parametrize("shape", [SEVEN, replace(SEVEN, parameters=72e9, layers=80, kv_values=2 * 80 * 8 * 128)])
@pytest.mark.parametrize("key", MORE)
def test_more_work_never_costs_less(key, shape):
    found = [replace(WORK, longest=400 if key != "tail" else int(value) + 80, **{key: value}) for value in MORE[key]]
    costs = [cost(work, shape, Accelerator()) for work in found]
    for figures in (
        [w.prefill_tokens for w in found],
        [w.decode_tokens for w in found],
        [w.decode_tokens_most for w in found],
        [c.hours_most for c in costs],
        *([c.hours for c in costs if c.gpus == gpus] for gpus in {c.gpus for c in costs}),
        [activations(w).disk for w in found],
    ):
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(figures)), (key, figures)
    assert all(c.hours <= c.hours_most for c in costs)


def test_a_pass_takes_what_bounds_it():
    """Few rows: the weights are read, or kernels launched; many: the arithmetic counts."""
    one = replace(WORK, questions=1, m=2, tail=1.0, longest=1, answer=100.0, most=100)
    gpu = Accelerator()
    reading = 14e9 / (gpu.bandwidth_share * gpu.bandwidth)
    launching = 28 * gpu.layer_seconds
    assert cost(one, SEVEN, gpu).hours * 3600 == pytest.approx(101 * max(reading, launching), rel=0.01)
    slow = replace(gpu, bandwidth=gpu.bandwidth / 100)
    assert cost(one, SEVEN, slow).hours * 3600 == pytest.approx(101 * reading * 100, rel=0.01)
    many = replace(WORK, questions=2_000, answer=30.0)
    computing = 2 * 7e9 * (many.questions * (many.tail + 50 * 30)) / (gpu.utilisation * 989e12)
    assert cost(many, SEVEN, gpu).hours * 3600 == pytest.approx(computing, rel=0.05)


def test_weights_that_one_gpu_cannot_hold_take_several():
    small, large = (cost(WORK, replace(SEVEN, parameters=p), Accelerator()) for p in (7e9, 72e9))
    assert small.gpus == 1
    assert large.gpus * 0.95 * 80e9 > large.weights_bytes == 144e9
    assert cost(replace(WORK, dtype="float32"), SEVEN, Accelerator()).weights_bytes == 28e9
    with pytest.raises(ValueError, match="int8"):
        cost(replace(WORK, dtype="int8"), SEVEN, Accelerator())


def test_keys_and_values_stay_within_what_the_sampler_gives_them():
    gpu = Accelerator()
    for most in (64, 1_024):
        found = cost(replace(WORK, most=most), SEVEN, gpu)
        assert WORK.m <= found.rows <= WORK.rows
        assert found.kv_bytes <= gpu.kv_share * (gpu.usable * gpu.memory - found.weights_bytes) * (1 + 1e-9)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_configuration_tells_the_parameters_that_the_weights_have(architecture, tmp_path):
    folder = save_checkpoint(tmp_path / architecture, architecture)
    whole = LanguageModel.load(folder, device="cpu")
    shape = shape_of(str(folder), LanguageModel.without_weights(folder))
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in whole.model.parameters())
    assert (shape.layers, shape.width, shape.source) == (3, 32, "configuration")
    assert shape.kv_values == kv_values(whole.model.config)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("Qwen/Qwen2.5-Math-72B", 72e9),
        ("google/gemma-3-27b-pt", 27e9),
        ("alignment-handbook/zephyr-7b-dpo-full", 7e9),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("EleutherAI/pythia-70m", 70e6),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7e9),
        ("meta-llama/Llama-3.1-8B", 8e9),
        ("openai-community/gpt2", None),
        ("someone/model-4bit", None),
        ("70b/model", None),
    ],
)
def test_the_size_in_a_name(name, parameters):
    assert parameters_in(name) == parameters


def test_a_shape_without_configuration():
    known, other = shape_of("Qwen/Qwen2.5-7B", None), shape_of("someone/thing-7B", None)
    assert known is not None
    assert other is not None
    assert (known.source, other.source) == ("table", "name")
    assert known.kv_values == 2 * 28 * 4 * 128
    assert 12 * other.layers * other.width**2 == pytest.approx(7e9, rel=0.05)
    assert shape_of("someone/thing", None) is None
