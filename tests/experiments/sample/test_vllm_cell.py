"""Studies that sample in a real vLLM on the CPU: the run's records, stopping and going on, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.probe.intervene import intervene_run
from experiments.probe.intervention_plan import Wanted
from experiments.sample import portions, vllm_cell
from probes.activations.engine_capture import EngineCapture
from semcal import LanguageModel, Run, UserError
from semcal.models.formats.gguf import unmark
from semcal.sampling.vllm.vllm_engine import VllmEngine
from tests.conftest import CONFIGS, word_tokenizer
from tests.experiments.conftest import questions_in, study_of, write_study
from tests.sampling.in_vllm.test_vllm_engine import write_checkpoint

pytestmark = pytest.mark.vllm


class Stop(Exception):
    pass


class StopsAfter(Reporter):
    """Stops a run after some answered questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def answered(self, questions: int) -> None:
        self.left -= questions
        if self.left <= 0:
            raise Stop


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vllm-study")


@pytest.fixture(scope="module")
def checkpoint(room) -> Path:
    return write_checkpoint("llama", room / "llama")


@pytest.fixture(scope="module", autouse=True)
def one_engine_for_all():
    """An engine lives as long as its model, which each study would load again."""
    held: dict[str, Any] = {}
    load = LanguageModel.load

    def once(path, **how):
        key = f"{path} {how}"
        if key not in held:
            held[key] = load(path, **how)
        return held[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "load", staticmethod(once))
        yield
    held.clear()


def study_in(room: Path, checkpoint: Path, name: str, engine: str = "vllm", **more: Any) -> dict[str, Any]:
    study = study_of(checkpoint, questions_in(room), room) | {"name": name}
    study["models"][0] |= {"engine": engine}
    study["sampling"] |= {"m": 20, "max_rows": None, "shard_size": 24}
    study["capture"] = {"positions": ["last_prompt_token", "last_question_token"]}
    return study | more


def prepared(room: Path, study: dict[str, Any]):
    return prepare_study(load_study(write_study(room, study)))


def test_a_run_in_vllm_has_the_records_of_any_other(room, checkpoint):
    runs = {}
    for engine in ("vllm", "hf"):
        ready = prepared(room, study_in(room, checkpoint, f"whole-{engine}", engine))
        run_study(ready, Reporter())
        runs[engine] = Run.open(ready.cells[0].folder)
    ours, theirs = runs["vllm"], runs["hf"]
    outcomes = {check["name"]: check["outcome"] for check in ours.manifest()["checks"]}
    assert set(outcomes.values()) == {"passed"}
    assert ours.samples().dtypes.to_dict() == theirs.samples().dtypes.to_dict()
    assert ours.samples().groupby("question_id")["count"].sum().eq(20).all()
    for position in ("last_prompt_token", "last_question_token"):
        here, there = ours.activations(position), theirs.activations(position)
        assert here.layers == there.layers
        assert here.token_ids.tolist() == there.token_ids.tolist()
        for layer in here.layers:
            apart = np.abs(here.layer(layer) - there.layer(layer)).max()
            assert apart < 1e-3 * np.abs(there.layer(layer)).max()
    engine = ours.manifest()["engine"]
    assert (engine["name"], engine["device"]) == ("vllm", "cpu")
    assert engine["version"].startswith("0.")
    assert max(engine["compared"]["layers"].values()) < 1e-3
    assert engine["compared"]["nats"] < 1e-3
    assert set(ours.probes().columns) == set(theirs.probes().columns)
    assert set(ours.calibration()) == set(theirs.calibration())
    assert "vllm" in (ours.folder / "report.html").read_text()
    assert ours.manifest()["sampling_work"][0]["cpu_seconds"] > 0


def test_a_run_that_is_stopped_goes_on_with_the_same_answers(room, checkpoint, monkeypatch):
    monkeypatch.setitem(portions.OPERATIONS_PER_S, "cpu", 3.6e5)  # so slow that a shard has several portions
    ready = prepared(room, study_in(room, checkpoint, "stopped"))
    with pytest.raises(Stop):
        run_study(ready, StopsAfter(30))
    run = Run.open(ready.cells[0].folder)
    assert 0 < run.questions_saved() < 48
    run_study(prepared(room, study_in(room, checkpoint, "stopped")), Reporter())
    whole = Run.open(room / "runs" / "whole-vllm" / ready.runs[0].folder.name)
    kept = run.samples()
    assert kept.groupby("question_id")["count"].sum().eq(20).all()
    assert kept["question_id"].nunique() == 48
    alike = kept.merge(whole.samples(), on=["question_id", "text", "count", "finish"])
    assert len(alike) >= 0.9 * len(kept)  # the same seeds; rounding may move a draw


def test_an_unfinished_run_is_not_continued_by_another_engine(room, checkpoint):
    ready = prepared(room, study_in(room, checkpoint, "changed"))
    with pytest.raises(Stop):
        run_study(ready, StopsAfter(5))
    with pytest.raises(UserError, match="was started with engine vllm; delete the folder"):
        run_study(prepared(room, study_in(room, checkpoint, "changed", "hf")), Reporter())


def test_interventions_use_the_same_samples_in_the_hugging_face_engine(room, caplog):
    run = Run.open(next((room / "runs" / "whole-vllm").glob("*__*")))
    before = run.manifest()["samples_key"]
    with caplog.at_level("INFO"):
        found = intervene_run(run, Wanted("ablate", (1,), (), 1), layers=(), position="last_prompt_token", n=20)
    assert len(found) > 0
    assert run.manifest()["samples_key"] == before
    assert "was sampled by vLLM; its model is loaded by Hugging Face" in caplog.text


def test_a_stream_that_is_not_the_models_stops_the_run_before_anything_is_kept(room, checkpoint, monkeypatch):
    keep = EngineCapture.keep

    def half(self, key, values, token_ids):
        values[:, -1] -= values[:, -2]  # what the last block adds, without what was there
        keep(self, key, values, token_ids)

    monkeypatch.setattr(EngineCapture, "keep", half)
    ready = prepared(room, study_in(room, checkpoint, "wrong"))
    with pytest.raises(UserError, match=r"activations at blocks.3.hook_resid_post differ between vLLM and plain"):
        run_study(ready, Reporter())
    assert not list(Path(ready.cells[0].folder).glob("samples/*"))


def test_tokens_that_are_not_drawn_as_stated_stop_the_run(room, checkpoint, monkeypatch):
    drawn = VllmEngine.first_tokens

    def warmer(self, prompts, settings):
        stated = drawn(self, prompts, settings)
        hot = drawn(self, prompts, replace(settings, temperature=2.0))
        return [(d, {**dict.fromkeys(d, -9.0), **s}) for (d, _), (_, s) in zip(hot, stated, strict=True)]

    monkeypatch.setattr(VllmEngine, "first_tokens", warmer)
    with pytest.raises(UserError, match="does not draw as it states: chi-square of"):
        run_study(prepared(room, study_in(room, checkpoint, "hot")), Reporter())


def test_a_model_that_vllm_cannot_serve_ends_in_one_line(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"]()).save_pretrained(tmp_path / "small")  # heads of 8 features
    word_tokenizer().save_pretrained(tmp_path / "small")
    ready = prepared(tmp_path, study_in(tmp_path, tmp_path / "small", "small"))
    with pytest.raises(UserError, match=r"vLLM ended by itself \(.*head_dim=8.*\); set engine to hf if") as refused:
        run_study(ready, Reporter())
    assert "\n" not in str(refused.value)


def test_in_bfloat16_rounding_is_allowed_for(room, checkpoint):
    study = study_in(room, checkpoint, "bfloat16")
    study["models"][0]["dtype"] = "bfloat16"
    study["datasets"][0]["n"] = 8
    ready = prepared(room, study)
    run_study(ready, Reporter())
    manifest = Run.open(ready.cells[0].folder).manifest()
    assert max(manifest["engine"]["compared"]["layers"].values()) < 1e-3  # 1 minus the cosine
    assert manifest["dtype"] == "bfloat16"
    assert {check["outcome"] for check in manifest["checks"]} == {"passed"}


def test_weights_that_only_this_side_can_read_are_written_out_for_vllm(room, checkpoint, tmp_path):
    model = LanguageModel.load(checkpoint, device="cpu", dtype="float32")
    unmark(model.model)
    config = load_study(write_study(tmp_path, study_in(room, checkpoint, "any"))).models[0]
    assert vllm_cell._is_read_by_vllm(model, config)
    assert not vllm_cell._is_read_by_vllm(replace(model, quantised="GGUF Q4_1"), config)
