"""Which cells are analysed beside the next one."""

from __future__ import annotations

import pytest

from experiments.reading import load_study
from experiments.study import WORTH_A_PROCESS, _worth_a_process
from tests.experiments.conftest import write_study

MANY = WORTH_A_PROCESS // 8  # questions of 8 samples


@pytest.mark.parametrize(
    ("questions", "change", "beside"),
    [
        (MANY, {}, True),
        (MANY - 1, {}, False),
        (MANY, {"semantics": [{"kind": "judge", "url": "http://localhost:1/v1", "model": "m"}]}, False),
        (MANY, {"semantics": [{"kind": "entailment", "path": "nli"}]}, False),
        (MANY, {"probes": {"rungs": ["linear", "lens"]}}, False),
        (MANY, {"probes": {"rungs": ["linear", "lens"], "enabled": False}}, True),
    ],
)
def test_only_what_takes_long_and_asks_no_model(tmp_path, study_dict, questions, change, beside):
    (cell,) = load_study(write_study(tmp_path, study_dict | change), []).cells()
    assert _worth_a_process(cell, questions) is beside
