"""What sampling takes: the figure of `Footprint` against the peak that the operating system measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from semcal.sampling.decoding.output_layer import LARGE
from semcal.sampling.engine import Budget
from semcal.sampling.memory import Footprint, kv_values

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
ROPE: dict[str, Any] = {"max_position_embeddings": 256, "head_dim": 64}
SCRIPT = """
import json, sys
from pathlib import Path
import psutil, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
torch.set_num_threads(1)
config, sampling, n = LlamaConfig(**json.loads(sys.argv[1])), json.loads(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
rule = StopRule(lambda ids: "", [], frozenset(), config.vocab_size)
sampler = Sampler(model, Sampling(**sampling), rule, device=torch.device("cpu"), path="shared-prefix")
prompts = [Prompt(str(i), tuple(range(1, 20)) + (20 + i,) * 12) for i in range(n)]
list(sampler.sample(prompts[:1]))  # libraries take their own buffers at the first call
before = psutil.Process().memory_info().rss
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
list(sampler.sample(prompts))
peak = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
print(json.dumps({"before": before, "peak": peak, "kv": sampler.work.peak_kv_bytes}))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a run")
def test_no_more_is_taken_than_is_counted():
    config, m, n, length = LlamaConfig(**SIZES, **ROPE, vocab_size=2 * LARGE), 10, 40, 6
    given = [
        json.dumps(SIZES | ROPE | {"vocab_size": config.vocab_size}),
        json.dumps({"m": m, "max_new_tokens": length}),
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *given, str(n)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    needed = Footprint(config, 4, "cpu")
    kv = needed.position * (19 + n * 12 + 2 * m * n * length)
    assert kv / 4 < found["kv"] <= 1.25 * kv  # room for rows to come
    counted = kv + needed.a_pass(m * n, n * 12)
    assert counted / 8 < found["peak"] - found["before"] <= 1.25 * counted


def test_logits_are_counted_where_they_are_computed_whole():
    config = LlamaConfig(**SIZES, **ROPE, vocab_size=2**18)
    by_blocks = Footprint(config, 2, "cpu")
    assert by_blocks.a_pass(768) < 768 * 2**18  # bytes: not even half of the logits
    for whole in (replace(by_blocks, device="cuda"), replace(by_blocks, sorts=True)):
        assert whole.a_pass(768) > 2 * 768 * 2**18 + 12 * 2**25


def test_what_a_pass_takes_is_not_left_for_keys_and_values():
    config = LlamaConfig(**SIZES, **ROPE, vocab_size=2**18)
    needed = Footprint(config, 4, "cuda")
    free = 4 * needed.a_pass(1024)
    assert needed.positions(free, 1024, 0) == (int(free * 0.6) - needed.a_pass(1024)) // (4 * kv_values(config))
    assert needed.positions(1000, 1024, 0) == 1  # a question at a time


def test_on_a_cpu_keys_and_values_do_not_grow_with_the_machine():
    config = LlamaConfig(**SIZES, **ROPE, vocab_size=500)
    needed = Footprint(config, 4, "cpu")
    assert needed.positions(2**40, 768, 0) * needed.position <= 2**31
    assert needed.positions(2**40, 768, 2**34) * needed.position == pytest.approx(2**34, rel=1e-3)
    model = AutoModelForCausalLM.from_config(config)
    assert Budget.of(model, torch.device("cpu")).positions <= 2**31 // needed.position
