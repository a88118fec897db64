# ruff: noqa: F811 (fixtures of another folder)
"""The same weights compute something else under another configuration: a run is not continued with it, nor its answers
taken over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.sample.models import Models
from semcal import LanguageModel, UserError
from tests.conftest import save_checkpoint
from tests.experiments.conftest import questions_file, run_dict, study_dict  # noqa: F401


def set_in(file: str, **values: object):
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def end_at_another_token(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "<unk>"}))


CHANGES = {
    "rope_theta": (set_in("config.json", rope_parameters={"rope_theta": 500.0, "rope_type": "default"}), "rope_theta"),
    "rms_norm_eps": (set_in("config.json", rms_norm_eps=0.1), "rms_norm_eps"),
    "sliding_window": (set_in("config.json", sliding_window=3), "sliding_window"),
    "activation": (set_in("config.json", hidden_act="gelu"), "hidden_act"),
    "context": (set_in("config.json", max_position_embeddings=128), "max_position_embeddings"),
    "end in config.json": (set_in("config.json", eos_token_id=[1, 5]), "end-of-sequence tokens"),
    "end in generation_config.json": (set_in("generation_config.json", eos_token_id=[1, 7]), "end-of-sequence tokens"),
    "end in tokenizer_config.json": (end_at_another_token, "end-of-sequence tokens"),
}


@pytest.fixture
def study(study_dict, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.pipeline.run_study.analyse", lambda *_, **__: None)
    monkeypatch.setattr("experiments.pipeline.run_study.write_study", lambda *_, **__: None)
    path = save_checkpoint(tmp_path / "model", "mistral", scale=4.0)
    models = [{"path": str(path), "name": "m", "device": "cpu"}]
    sampling = study_dict["sampling"] | {"shard_size": 4}
    datasets = [study_dict["datasets"][0] | {"n": 8}]
    probes, capture = {"enabled": False}, {"positions": []}
    return study_dict | {
        "models": models, "datasets": datasets, "sampling": sampling, "probes": probes, "capture": capture
    }  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_run_is_not_continued_with_another_configuration(tmp_path, study, change, said):
    (run,) = run_dict(tmp_path, study)
    next((run.folder / "samples").glob("*.parquet")).unlink()
    change(tmp_path / "model")
    with pytest.raises(
        UserError, match=rf"was started with (.*{said} .*\(now .*\)|a different tokenizer).*; delete"
    ) as e:
        run_dict(tmp_path, study)
    assert "\n" not in str(e.value)


def test_a_finished_run_says_that_its_model_has_changed(tmp_path, study):
    (run,) = run_dict(tmp_path, study)
    CHANGES["rms_norm_eps"][0](tmp_path / "model")
    with pytest.raises(UserError, match=r"was started with rms_norm_eps 1e-06 \(now 0\.1\)"):
        run_dict(tmp_path, study)
    from experiments.config.run_folder import stored_cell

    with pytest.raises(UserError, match=r"was made with rms_norm_eps 1e-06 \(now 0\.1\) in the configuration"):
        Models().of_run(stored_cell(run), run)


@pytest.mark.held_before
def test_bookkeeping_may_change(tmp_path, study):
    (run,) = run_dict(tmp_path, study)
    next((run.folder / "samples").glob("*.parquet")).unlink()
    change = {"transformers_version": "4.0.0", "use_cache": False, "dtype": "bfloat16", "architectures": ["M"]}
    set_in("config.json", **change)(tmp_path / "model")
    set_in("generation_config.json", temperature=0.1, top_k=3, do_sample=True)(tmp_path / "model")
    (again,) = run_dict(tmp_path, study)
    assert again.sampled


@pytest.mark.held_before
def test_a_run_from_before_settings_were_recorded_is_continued(tmp_path, study):
    (run,) = run_dict(tmp_path, study)
    next((run.folder / "samples").glob("*.parquet")).unlink()
    run.write_manifest({key: value for key, value in run.manifest().items() if key != "computation"})
    (again,) = run_dict(tmp_path, study)
    assert again.sampled


def test_answers_of_the_same_weights_under_another_configuration_are_not_taken_over(tmp_path, study):
    other = save_checkpoint(tmp_path / "other", "mistral", scale=4.0)
    CHANGES["rms_norm_eps"][0](other)
    both = study | {"models": [*study["models"], {"path": str(other), "name": "other", "device": "cpu"}]}
    one, two = run_dict(tmp_path, both)
    assert one.manifest()["weights_hash"] == two.manifest()["weights_hash"]
    assert list(one.samples()["logprob"]) != list(two.samples()["logprob"])


def test_what_is_computed_is_recorded(tmp_path, study):
    (run,) = run_dict(tmp_path, study)
    recorded = run.manifest()["computation"]
    assert recorded == LanguageModel.load(tmp_path / "model", device="cpu").computation
    assert recorded["end-of-sequence tokens"] == [1]
    assert not {"dtype", "transformers_version", "_name_or_path"} & recorded.keys()
