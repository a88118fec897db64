"""A dry run resolves and checks what a run would, writes nothing, and counts what the sampler will count."""

from __future__ import annotations

import json
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.config.study import NamedConfig, PromptingConfig, load_dataset, load_study
from experiments.pipeline.dry_run import OWN, STAND_IN, STATED, dry_run, pieces
from experiments.pipeline.dry_run_table import plan_data, plan_notes
from experiments.pipeline.run_study import prepare_study
from experiments.report.summary_table import remarks, summary_rows
from experiments.sample.models import load_model
from experiments.sample.sample_cell import sample_cell
from experiments.sample.sampling_job import prepare
from semcal import UserError
from semcal.questions.prompts import written
from semcal.runs.run import Run
from tests.conftest import data_folder, needs, save_checkpoint
from tests.experiments.conftest import run_dict, write_study
from tests.experiments.pipeline.test_cli import semcal

STUDIES = Path(__file__).parents[3] / "experiments" / "studies"
FIGURE = {"model": "llama", "dataset": "colours", "style": "concise", "smece": 0.031, "source": "somewhere"}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    def out_of_reach(hub, *_, **__):
        raise UserError(f"{hub}: not read from the Hub")

    monkeypatch.setattr("semcal.questions.named.named_datasets.hub_rows", out_of_reach)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def sampled(folder: Path, study: dict) -> list[Run]:
    """The runs of a study of one model, sampled and not looked at any further."""
    prepared = prepare_study(load_study(write_study(folder, study)))
    model = load_model(prepared.study.models[0])
    for cell, run in zip(prepared.cells, prepared.runs, strict=True):
        sample_cell(prepare(cell, run, prepared.datasets[cell.dataset.name], model, ()), model, lambda _: None)
    return list(prepared.runs)


@pytest.mark.parametrize(("name", "cells"), [("paper", 30 * 5 * 3), ("paper-checkpoints", 23 * 2 * 3)])
def test_the_papers_studies_resolve_offline(name, cells):
    study = load_study(next(STUDIES.rglob(f"{name}.yaml")))
    found = dry_run(study)
    data = plan_data(found)
    assert len(data["cells"]) == data["totals"]["cells"] == cells == len(study.cells())
    assert {r["folder"] for r in data["cells"]} == {c.folder for c in study.cells()}
    assert not Path(study.folder).exists()
    for record in data["cells"]:
        assert record["dtype"] == "bfloat16"
        assert record["m"] == 50
        assert record["prompt"]
        assert (record["tokenizer"], record["questions"]) == (STAND_IN, "placeholders")
        assert record["prefill_tokens"] > 0
        assert record["decode_tokens"] <= record["decode_tokens_most"] == record["n"] * 50 * record["max_new_tokens"]
        assert record["memory_bytes"] is None
    said = " ".join(plan_notes(found))
    assert "stand-in" in said
    assert "placeholders" in said


def test_the_command_in_the_papers_study_adds_truthfulqa():
    text = (STUDIES / "paper" / "paper.yaml").read_text()
    command = text[text.index("# semcal run paper.yaml") : text.index("styles:")].replace("\n  #", "")
    overrides = [part for flag, part in pairwise(shlex.split(command)) if flag == "--set"]
    cells = load_study(STUDIES / "paper" / "paper.yaml", overrides).cells()
    assert len(cells) == 30 * 3
    assert {(c.study, c.dataset.kind, c.semantics.kind) for c in cells} == {
        ("paper-truthfulqa", "truthfulqa", "entailment")
    }


def test_published_figures_are_shown_with_their_cells():
    data = plan_data(dry_run(load_study(STUDIES / "paper" / "paper.yaml")))
    shown = {(r["model"], r["dataset"], r["style"]): r["published"]["smece"] for r in data["cells"] if r["published"]}
    assert shown == {
        ("Mistral-7B-v0.1", "triviaqa", "sentence"): 0.036,
        ("Qwen2.5-7B", "triviaqa", "sentence"): 0.030,
        ("Llama-3.1-70B", "simpleqa", "sentence"): 0.031,
        ("Qwen2.5-7B", "gsm8k", "concise"): 0.047,
        ("gemma-3-27b-pt", "gsm8k", "concise"): 0.031,
        ("Qwen2.5-Math-72B", "openmathinstruct2", "concise"): 0.038,
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("vary", "positions"), [("question", ["last_prompt_token"]), ("run", ["last_prompt_token", "last_question_token"])]
)
def test_the_demo_is_counted_as_it_will_be_sampled(tmp_path, vary, positions):
    raw = {
        "name": "demo",
        "models": [{"path": "atlas:base", "name": "atlas-base", "device": "cpu"}],
        "datasets": [{"kind": "atlas", "family": family, "n": 60} for family in ("facts", "routes")],
        "prompting": {"shots": 2, "vary": vary},
        "styles": ["concise", "cot"],
        "sampling": {"m": 10, "max_new_tokens": {"concise": 12, "sentence": 24, "cot": 48}, "shard_size": 16},
        "capture": {"positions": positions},
        "probes": {"enabled": False},
        "output": str(tmp_path / "runs"),
    }
    planned = dry_run(load_study(write_study(tmp_path, raw)))
    assert not (tmp_path / "runs").exists()
    assert all(p.read.tokenizer == OWN and p.real for p in planned)
    for plan, run in zip(planned, sampled(tmp_path, raw), strict=True):
        (work,) = run.manifest()["sampling_work"]
        assert plan.read.prefix_tokens == work["prefix_tokens"]
        assert plan.prefill_tokens == work["prefix_tokens"] + work["prompt_tokens"]
        samples = run.samples()
        tokens = sum(c * len(ids) for c, ids in zip(samples["count"], samples["token_ids"], strict=True))
        assert work["rows_plain"] == tokens - 60 * 10  # the first token of a sample comes of the prefill
        assert work["rows_decoded"] <= tokens <= plan.decode_tokens(12 if plan.cell.style == "concise" else 48)
        activations = (run.folder / "activations").iterdir()
        assert plan.memory is not None
        assert plan.memory["activations"] == pytest.approx(sum(f.stat().st_size for f in activations), rel=0.15)
        assert plan.decode_tokens(plan.read.answer_tokens) == pytest.approx(
            tokens, rel=0.1
        )  # this model answers as its exemplars do
    if vary == "run":
        assert planned[0].read.prefix_tokens > 30  # two exemplars, but not the question


@pytest.mark.parametrize("kind", ["gsm8k", "math500", "triviaqa", "simpleqa", "truthfulqa"])
def test_stated_lengths_are_those_of_the_original_files(kind):
    files = {"gsm8k": "test.jsonl", "math500": "test.jsonl", "triviaqa": "TriviaQA.csv", "truthfulqa": "TruthfulQA.csv"}
    path = needs(data_folder() / kind / files.get(kind, "simple_qa_test_set.csv"))
    dataset = load_dataset(NamedConfig(kind=kind, path=str(path)), PromptingConfig(shots=0, exemplars=0))
    stated = STATED[kind]
    for length, texts in (
        (stated.question, [q.text for q in dataset.questions]),
        (stated.answer, [f" {q.answers[0]}" for q in dataset.questions]),
        (stated.solution, [f" {written(q, 'cot', 0)}" for q in dataset.questions]),
    ):
        if length is not None:
            assert sum(len(pieces(t)) for t in texts) / len(texts) == pytest.approx(length, abs=1.5)


def test_models_that_are_not_on_this_machine_are_estimated(tmp_path, study_dict):
    study_dict["models"] += [{"path": "someone/some-7B", "dtype": "bfloat16"}, {"path": "someone/nameless"}]
    found = dry_run(load_study(write_study(tmp_path, study_dict)))
    here, sized, unknown = found
    assert (here.read.tokenizer, sized.read.tokenizer) == (OWN, STAND_IN)
    assert here.memory is not None
    assert here.memory["weights"] == 4 * load_model(here.cell.model).model.num_parameters()
    assert sized.memory is unknown.memory is None
    assert unknown.prefill_tokens == sized.prefill_tokens
    assert "no tokenizer on this machine for someone-some-7B, someone-nameless" in " ".join(plan_notes(found))


def test_a_server_is_not_asked(tmp_path, study_dict):
    study = study_dict | {"models": [{"path": "http://127.0.0.1:9/v1"}], "capture": {"positions": []}}
    found = dry_run(load_study(write_study(tmp_path, study | {"probes": {"enabled": False}})))
    (planned,) = found
    assert (planned.memory, planned.read.tokenizer) == (None, STAND_IN)
    assert planned.decode_tokens(planned.read.answer_tokens) > 0


def test_bs_share_their_samples_and_are_counted_once(tmp_path, study_dict):
    one = dry_run(load_study(write_study(tmp_path, study_dict)))
    both = study_dict | {"semantics": [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]}
    two = plan_data(dry_run(load_study(write_study(tmp_path, both))))
    assert [r["samples_of"] is None for r in two["cells"]] == [True, False]
    assert two["totals"] == plan_data(one)["totals"] | {"cells": 2}


def test_enumeration_is_bounded_by_its_budget(tmp_path, study_dict):
    study_dict["sampling"]["exact"] = {"row_budget": 30}
    (planned,) = dry_run(load_study(write_study(tmp_path, study_dict)))
    assert planned.decode_tokens(1) == planned.decode_tokens(4) == 48 * 30


@pytest.mark.parametrize(
    "change",
    [
        {"models": [{"path": "/nowhere/at/all"}]},
        {"models": [{"path": "atlas:bse"}]},
        {"datasets": [{"kind": "jsonl", "path": "/nowhere.jsonl"}]},
        {"semantics": [{"kind": "choice"}]},
        {"sampling": {"m": 1}},
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses_in_the_same_words(tmp_path, study_dict, change):
    path = write_study(tmp_path, study_dict | change)

    def refusal(step) -> str:
        with pytest.raises(UserError) as caught:
            step(load_study(path))
        return str(caught.value)

    assert refusal(dry_run) == refusal(prepare_study)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"max_new_tokens": 400}},
        {"sampling": {"max_new_tokens": 240}},
        {"capture": {"hooks": ["blocks.7.hook_resid_post"]}},
    ],
)
def test_what_only_a_model_can_refuse(tmp_path, study_dict, change):
    path = write_study(tmp_path, study_dict | change)
    with pytest.raises(UserError) as before:
        dry_run(load_study(path))
    with pytest.raises(UserError) as after:
        run_dict(tmp_path, study_dict | change)
    assert str(before.value).removeprefix("llama: ") == str(after.value)


def test_a_folder_of_another_configuration_is_refused_and_left_alone(tmp_path, study_dict):
    sampled(tmp_path, study_dict)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    before = (folder / "config.yaml").read_bytes()
    dry_run(load_study(write_study(tmp_path, study_dict), ["calibration.bootstrap=30"]))
    with pytest.raises(UserError, match="holds a run of another configuration"):
        dry_run(load_study(write_study(tmp_path, study_dict), ["seed=5"]))
    assert (folder / "config.yaml").read_bytes() == before


def test_more_questions_than_the_hub_states_are_refused(tmp_path, study_dict):
    study = study_dict | {
        "datasets": [{"kind": "truthfulqa", "n": 900}],
        "semantics": [{"kind": "entailment", "path": "x"}],
    }
    with pytest.raises(UserError, match="n is 900, but 0 exemplars leave only 817 questions"):
        dry_run(load_study(write_study(tmp_path, study)))


def test_a_named_dataset_that_is_not_here_and_of_unknown_size_is_refused(monkeypatch, tmp_path, study_dict):
    monkeypatch.delitem(STATED, "gsm8k")
    study = study_dict | {"datasets": [{"kind": "gsm8k"}], "semantics": [{"kind": "numeric"}]}
    with pytest.raises(UserError, match=r"gsm8k: .*; a dry run has no stand-in for gsm8k, so read it once by `semcal"):
        dry_run(load_study(write_study(tmp_path, study)))


def test_a_relation_that_is_not_here_is_refused_with_where_it_is_to_be_had(tmp_path, study_dict):
    study = study_dict | {"datasets": [{"kind": "lre", "split": "company_hq"}]}
    with pytest.raises(UserError, match=r"clone https://github.com/evandez/relations .* whose lre_relations holds it$"):
        dry_run(load_study(write_study(tmp_path, study)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "lama"}, "model 'lama' is not in the grid, did you mean 'llama'"),
        ({"dataset": "colors"}, "dataset 'colors' is not in the grid, did you mean 'colours'"),
        ({"style": "cot"}, "style 'cot' is not in the grid"),
        ({"style": "concice"}, "did you mean 'concise'"),
        ({"smece": 1.2}, "published.0.smece"),
        ({"smce": 0.1}, "unknown key 'published.0.smce', did you mean 'smece'"),
    ],
)
def test_a_published_figure_of_no_cell_is_refused(tmp_path, study_dict, change, message):
    with pytest.raises(UserError) as caught:
        load_study(write_study(tmp_path, study_dict | {"published": [FIGURE | change]}))
    assert message in str(caught.value)


def test_two_published_figures_for_one_cell_are_refused(tmp_path, study_dict):
    with pytest.raises(UserError, match=r"published.1: llama · colours · concise is duplicated"):
        load_study(write_study(tmp_path, study_dict | {"published": [FIGURE, FIGURE | {"smece": 0.2}]}))


@pytest.mark.long
def test_a_published_figure_is_shown_with_ours(tmp_path, study_dict):
    study = load_study(write_study(tmp_path, study_dict | {"published": [FIGURE]}))
    (run,) = run_dict(tmp_path, study_dict | {"published": [FIGURE]}, drawn=True)
    (cell,) = study.cells()
    assert "published" in summary_rows([(cell, run)])[0]
    assert any("Published for this cell: smECE 0.031 (somewhere)" in said for said in remarks(cell, run))
    assert "smECE 0.031 (somewhere)" in (run.folder / "report.html").read_text()
    (plain,) = run_dict(tmp_path, study_dict)  # a figure may be added or taken away without sampling again
    assert "published" not in summary_rows([(cell, plain)])[0]


def test_the_command(monkeypatch, capsys, tmp_path, study_dict):
    path = write_study(tmp_path, study_dict | {"published": [FIGURE]})
    code, out, err = semcal(monkeypatch, capsys, "run", path, "--dry-run")
    assert code == 0, err
    for text in ("colours · concise", "total", "generated", "memory", "0.031", "estimated"):
        assert text in out
    assert not (tmp_path / "runs").exists()
    code, out, _ = semcal(monkeypatch, capsys, "run", path, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["cells"][0]["model"] == "llama"


def test_a_chat_model_here_without_a_template_is_refused(tmp_path, study_dict):
    folder = save_checkpoint(tmp_path / "plain")
    study_dict["models"] = [{"path": str(folder), "name": "plain", "prompt": "chat"}]
    with pytest.raises(UserError, match="plain has no chat template"):
        dry_run(load_study(write_study(tmp_path, study_dict)))


def test_the_engine_of_every_model_is_named_with_the_reason(tmp_path, study_dict):
    here, python = study_dict["models"][0]["path"], sys.executable
    study_dict["models"] += [
        {"path": here, "name": "in-a-process", "engine": "vllm", "python": python},
        {"path": here, "name": "at-an-address", "engine": "vllm", "served_at": "http://127.0.0.1:9"},
        {"path": here, "name": "on-a-gpu", "device": "cuda"},
    ]
    found = dry_run(load_study(write_study(tmp_path, study_dict)))
    said = {note.split(":")[0]: note for note in plan_notes(found) if note.startswith("engine of")}
    assert "sampler, on a CPU faster than vLLM in every case measured" in said["engine of llama"]
    assert "vLLM, as the study says; in its own process" in said["engine of in-a-process"]
    assert "vLLM, as the study says; that at http://127.0.0.1:9" in said["engine of at-an-address"]
    assert "CUDA is not measured: `python -m experiments.bench engines`" in said["engine of on-a-gpu"]
    assert [record["engine"] for record in plan_data(found)["cells"]] == ["hf", "vllm", "vllm", "hf"]
