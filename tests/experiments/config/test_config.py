"""An invalid study is refused in one line that names the key, the value found and the nearest valid name."""

from __future__ import annotations

import pytest

from experiments.config.study import AtlasConfig, load_dataset, load_study
from semcal import UserError
from tests.experiments.conftest import write_study

VLLM = {"models": [{"path": "x", "engine": "vllm"}]}
VLLM_AT = {"models": [{"path": "x", "engine": "vllm", "served_at": "http://localhost:1"}]}


def refused(tmp_path, study, *overrides):
    with pytest.raises(UserError) as caught:
        load_study(write_study(tmp_path, study), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_valid_study_and_the_cells_of_its_grid(tmp_path, study_dict):
    study = load_study(write_study(tmp_path, study_dict | {"styles": ["concise", "cot"]}), ["sampling.m=20", "seed=3"])
    assert [c.style for c in study.cells()] == ["concise", "cot"]
    assert study.cells()[0].sampling.m == 20
    assert len({c.folder for c in study.cells()}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"temprature": 1}}, "unknown key 'sampling.temprature', did you mean 'temperature'"),
        ({"modles": []}, "unknown key 'modles', did you mean 'models'"),
        ({"temperature": 1}, "unknown key 'temperature'; it belongs under 'sampling'"),
        ({"sampling": {"m": 1}}, "sampling.m: input should be greater than or equal to 2, got 1"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature: .*greater than 0, got 0"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"m": "many"}}, "sampling.m: .*got 'many'"),
        ({"styles": ["concice"]}, "styles.0: 'concice' is not valid; expected one of .*, did you mean 'concise'"),
        (
            {"sampling": {"max_new_tokens": {"concsie": 3}}},
            "unknown key 'sampling.max_new_tokens.concsie', did you mean 'concise'",
        ),
        ({"sampling": {"temperature": float("inf")}}, "sampling.temperature"),
        ({"styles": []}, "styles: .*at least 1"),
        (
            {"datasets": [{"kind": "trivaqa", "path": "x"}]},
            "datasets.0: unknown kind 'trivaqa', did you mean 'triviaqa'",
        ),
        ({"datasets": [{"path": "x"}]}, "datasets.0: key 'kind' is missing"),
        ({"datasets": [{"kind": "jsonl"}]}, "key 'datasets.0.path' is missing"),
        (
            {"datasets": [{"kind": "atlas", "family": "fact"}]},
            "'fact' is not valid; expected one of facts, routes, myths, rings, shuffles, did you mean 'facts'",
        ),
        (
            {"datasets": [{"kind": "atlas", "family": "facts", "split": "facts"}]},  # a key of other kinds
            "unknown key 'datasets.0.split'; the keys here are name, n, .*family, stops, exposure",
        ),
        ({"datasets": [{"kind": "jsonl", "path": "x", "pth": 1}]}, "unknown key 'datasets.0.pth', did you mean 'path'"),
        ({"styles": ["continuation"]}, "'continuation' needs a dataset of kind continuation"),
        ({"datasets": [{"kind": "continuation", "path": "x"}]}, "whose only style is 'continuation'"),
        ({"styles": ["concise", "concise"]}, "'concise' is duplicated"),
        ({"prompting": {"shots": 5, "exemplars": 3}}, "shots is 5 but exemplars is 3"),
        ({"capture": {"positions": []}}, "nothing to probe"),
        (
            {"capture": {"positions": ["last_promt_token"]}},
            "capture.positions: 'last_promt_token' is not a valid position, did you mean 'last_prompt_token'",
        ),
        ({"capture": {"positions": ["chain_0", "chain_0"]}}, "capture.positions: 'chain_0' is duplicated"),
        ({"capture": {"hooks": ["blocks.*.hook_mlpout"]}}, r"capture.hooks: .* did you mean 'blocks.\*.hook_mlp_out'"),
        ({"capture": {"hooks": ["blocks.*.attn.hook_z"]}}, "captures only heads, which probes do not read"),
        (
            {"capture": {"positions": ["all_question_tokens"]}},
            "holds only all_question_tokens, which linear probes do not read",
        ),
        (
            {"capture": {"dtype": "fp16"}},
            "capture.dtype: 'fp16' is not valid; expected one of .*, did you mean 'float16'",
        ),
        ({"capture": {"position": ["chain_0"]}}, "unknown key 'capture.position', did you mean 'positions'"),
        ({"sampling": {"exact": {"epsilon": 2}}}, "sampling.exact.epsilon"),
        (
            {"models": [{"path": "http://localhost:1/v1"}]},
            "is served, so nothing can be captured; set capture.positions",
        ),
        ({"models": [{"path": "http://localhost:1/v1", "prompt": "chat"}]}, "completions endpoint; set its prompt"),
        ({"models": [{"path": "http://localhost:1/v1", "adapter": "apply"}]}, "a server has its own adapters"),
        ({"models": [{"path": "x", "adapter": "merge"}]}, "models.0.adapter: 'merge' is not valid"),
        ({"models": [{"path": "http://localhost:1/v1", "engine": "vllm"}]}, "a server has its own engine"),
        ({"models": [{"path": "x", "python": "y"}]}, "python names the interpreter of engine vllm; leave it out"),
        (
            {"models": [{"path": "x", "served_at": "http://localhost:1"}]},
            "served_at is the address of a vLLM; set engine",
        ),
        (
            VLLM_AT | {"models": [VLLM_AT["models"][0] | {"served_at": "localhost:1"}]},
            "no address such as http://local",
        ),
        (VLLM_AT | {"models": [VLLM_AT["models"][0] | {"python": "y"}]}, "has its own python; leave python out"),
        (VLLM_AT | {"models": [VLLM_AT["models"][0] | {"device": "cuda"}]}, "has its own device; leave device out"),
        (VLLM | {"sampling": {"exact": {"epsilon": 0.1}}}, "has engine vllm, which can only sample"),
        (VLLM | {"sampling": {"temperature": 2.5}}, "has engine vllm, which samples at temperatures up to 2"),
        (
            VLLM | {"capture": {"positions": ["after_4_tokens"]}},
            "no activations after the prompt; leave after_4_tokens",
        ),
        (
            VLLM | {"probes": {"rungs": ["linear", "lora"]}},
            r"leave lora out .* --set models.0.engine=hf --set 'probes.rungs=\[linear,lora\]",
        ),
        ({"models": [{"path": "x", "served": {"model": "m"}}]}, "served needs the address of a server as path"),
        (
            {"models": [{"path": "x", "dtype": "fp16"}]},
            "models.0.dtype: 'fp16' is not valid; expected one of .*, did you mean 'float16'",
        ),
    ],
)
def test_impossible_studies_are_refused(tmp_path, study_dict, change, message):
    import re

    assert re.search(message, refused(tmp_path, study_dict | change))


def test_a_continuation_needs_kth_word(tmp_path, study_dict):
    study = study_dict | {"datasets": [{"kind": "continuation", "path": "x"}], "styles": ["continuation"]}
    assert "kth-word" in refused(tmp_path, study)
    load_study(write_study(tmp_path, study | {"semantics": [{"kind": "kth-word", "k": 2}]}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.m", "expected key=value"),
        ("models.7.path=x", "'7' is not a valid list index; expected 0 to 0"),
        ("models.first.path=x", "'first' is not a valid list index"),
        ("name.deep=x", "'name|name is a value"),
        ("sampling.mm=3", "unknown key 'sampling.mm', did you mean 'm'"),
    ],
)
def test_overrides_of_unknown_keys_are_refused(tmp_path, study_dict, override, message):
    import re

    assert re.search(message, refused(tmp_path, study_dict, override))


def test_files_that_are_not_a_study_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file .*nope\.yaml"):
        load_study(tmp_path / "nope.yaml")
    (tmp_path / "study.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"study\.yaml:\d+: not YAML"):
        load_study(tmp_path / "study.yaml")
    with pytest.raises(UserError, match=r"did you mean 'study\.yaml'"):
        load_study(tmp_path / "studi.yaml")
    (tmp_path / "study.yaml").write_text("just text")
    with pytest.raises(UserError, match="a study is a mapping"):
        load_study(tmp_path / "study.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_study(tmp_path)


def test_the_shipped_studies_are_valid():
    from pathlib import Path

    import experiments

    files = sorted((Path(experiments.__file__).parent / "studies").rglob("*.yaml"))
    assert files
    for file in files:
        study = load_study(file)
        assert study.cells()
        for dataset in study.datasets:
            if isinstance(dataset, AtlasConfig):  # of others the files are not here
                assert len(load_dataset(dataset, study.prompting).questions) == (dataset.n or 1000)
