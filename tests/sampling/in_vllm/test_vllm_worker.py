"""What is mixed into vLLM's worker, with a model of two layers in place of vLLM's: who reads what in which pass."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from semcal.sampling.vllm import vllm_worker
from semcal.sampling.vllm.vllm_worker import Reading, merged


class Layer(torch.nn.Module):
    """Adds its number to the stream, which comes in two parts."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        whole = hidden_states if residual is None else hidden_states + residual
        return torch.full_like(whole, self.number), whole


class Worker(Reading):
    """A pass computes these tokens of these requests: (name, first place, token ids). The stream begins with the ids."""

    def __init__(self, *, pipeline: int = 1) -> None:
        parallel = SimpleNamespace(pipeline_parallel_size=pipeline, data_parallel_size=1)
        config = SimpleNamespace(num_hidden_layers=2, hidden_size=3, vocab_size=99)
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList([Layer(10), Layer(20)])
        self.rank, self.vllm_config = 0, SimpleNamespace(parallel_config=parallel)
        self.model_runner = SimpleNamespace(
            get_model=lambda: model,
            model_config=SimpleNamespace(hf_text_config=config),
            device=torch.device("cpu"),
            input_ids=SimpleNamespace(gpu=torch.zeros(0)),
            input_batch=None,
            query_start_loc=None,
            _model_forward=self._computed,
        )

    def _computed(self) -> None:
        hidden, residual = self.model_runner.input_ids.gpu[:, None].repeat(1, 3).float(), None
        for layer in self.model_runner.get_model().layers:
            hidden, residual = layer(hidden, residual)

    def compute(self, *requests: tuple[str, int, list[int]]) -> None:
        runner: Any = self.model_runner
        runner.input_ids.gpu = torch.tensor([i for _, _, ids in requests for i in ids])
        starts = np.cumsum([0, *(len(ids) for _, _, ids in requests)])
        runner.query_start_loc = SimpleNamespace(np=starts)
        computed = np.array([first for _, first, _ in requests])
        runner.input_batch = SimpleNamespace(
            num_computed_tokens_cpu=computed, req_ids=[name for name, _, _ in requests]
        )
        runner._model_forward()


@pytest.fixture(autouse=True)
def _no_vllm(monkeypatch):
    monkeypatch.setattr(vllm_worker, "_run_as_it_is", lambda: None)


def test_each_request_is_read_where_and_in_which_layers_it_asked():
    worker = Worker()
    worker.semcal_read([(0, True), (1, False)], {"qa1": [1, 4]})
    worker.semcal_read([(0, False)], {"qb2": [0]})
    worker.compute(
        ("0_cmpl-qa1-0-5d0c2a9b", 0, [1, 2, 3]),
        ("1_cmpl-qa1-0-5d0c2a9b", 0, [1, 2, 3]),
        ("cmpl-qb2-0-11112222", 0, [7]),
        ("chatcmpl-qb2-0-1", 0, [8]),
    )
    assert worker.semcal_take("qa1") == {"missing": [4]}
    worker.compute(("1_cmpl-qa1-0-5d0c2a9b", 3, [4, 5]))
    one, other = worker.semcal_take("qa1"), worker.semcal_take("qb2")
    assert one["values"][:, :, 0].tolist() == [[2, 32], [5, 35]]  # into the first layer, out of the second
    assert (one["token_ids"].tolist(), other["token_ids"].tolist()) == ([2, 5], [7])
    assert other["values"][:, :, 0].tolist() == [[17]]
    assert not worker.semcal_wanted


def test_what_goes_over_http_is_json_and_comes_from_the_first_worker_alone():
    worker = Worker()
    worker.semcal_read([[1, False]], {"qa": [0]})  # as JSON has it
    worker.compute(("cmpl-qa-0-1", 0, [6]))
    worker.rank = 1
    assert worker.semcal_take_coded("qa") == {"missing": []}
    worker.semcal_read([[1, False]], {"qa": [0]})
    worker.compute(("cmpl-qa-0-1", 0, [6]))
    worker.rank = 0
    found = worker.semcal_take_coded("qa")
    assert np.frombuffer(base64.b64decode(found["values"]), "<f4").tolist() == [36.0] * 3
    assert (found["shape"], found["token_ids"], found["missing"]) == ([1, 1, 3], [6], [])
    assert {type(value) for value in worker.semcal_facts().values()} == {int, str}


def test_who_is_gone_leaves_nothing_behind(monkeypatch):
    worker = Worker()
    worker.semcal_read([(0, False)], {"qa": [0], "qb": [0]})
    worker.semcal_forget(["qa", "qc"])
    assert list(worker.semcal_wanted) == ["qb"]
    monkeypatch.setattr(vllm_worker, "_FORGOTTEN_S", -1.0)
    worker.semcal_read([(0, False)], {"qd": [0]})
    assert list(worker.semcal_wanted) == ["qd"]


def test_pipeline_parallelism_is_refused():
    with pytest.raises(RuntimeError, match="pipeline or data parallelism"):
        Worker(pipeline=2).semcal_facts()


def test_answers_that_are_alike_are_counted():
    assert merged([((1, 2), (-1.0, -2.0)), ((3,), (-0.5,)), ((1, 2), (-1.0, -2.1))]) == [
        [[1, 2], [-1.0, -2.0], 2], [[3], [-0.5], 1],
    ]  # fmt: skip
