"""Stages of any model: that they learn what they should, and go on after a halt as if there had been none."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.train import train_from, tuning
from experiments.train.conversations import CHAT_TEMPLATE, labelled
from experiments.train.preferences import Pair
from experiments.train.stage_settings import settings_for
from experiments.train.step_log import read_log
from experiments.train.training_questions import TrainingQuestions
from semcal import LanguageModel, UserError
from tests.experiments.train.conftest import FEW, Halted, halt_at

pytestmark = pytest.mark.filterwarnings("ignore:.*rollout_func")


def pairs_given(_model, settings, turns, *_):
    """A tiny model is never right: pairs as if it were."""
    return [Pair(turn, "red", "blue") for turn in turns[: settings.pairs]]


def test_a_real_model_is_named_as_in_a_study(questions, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCAL_MODELS", str(tmp_path))
    with pytest.raises(UserError, match=r"real:gemma-3-270m is not here .*; fetch it with"):
        train_from.train_from("real:gemma-3-270m", "sft", questions, settings_for("sft", "cpu", **FEW), tmp_path)


# ---- training -----------------------------------------------------------------------------------------------------


def test_sft_learns_gold_answers_and_writes_a_plain_model(base, questions, tmp_path, caplog):
    before, seen = (Path(base) / "model.safetensors").read_bytes(), []
    settings = settings_for("sft", "cpu", steps=25, batch_size=8, learning_rate=1e-2, warmup=2, checkpoints=3)
    folder = train_from.train_from(base, "sft", questions, settings, tmp_path, on_progress=seen.append)
    assert np.mean([p.loss for p in seen[-5:]]) < np.mean([p.loss for p in seen[:5]]) - 0.5
    assert (Path(base) / "model.safetensors").read_bytes() == before
    assert "has no chat template; the default one is used: question-answer" in caplog.text
    model = LanguageModel.load(folder, device="cpu")
    assert model.tokenizer.chat_template == CHAT_TEMPLATE
    assert not (folder / "adapter_config.json").exists()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["step-0", "step-16", "step-25"]
    for step in ("step-0", "step-25"):
        assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"} <= {
            p.name for p in (folder / step).iterdir()
        }
    again = LanguageModel.load(folder / "step-25", device="cpu")  # the adapter alone
    for name, weight in model.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight)
    assert again.tokenizer.chat_template == CHAT_TEMPLATE
    made = json.loads((folder / "training.json").read_text())
    assert (made["stage"], made["step"], made["chat_template"]) == ("sft", 25, "question-answer")
    assert made["from_weights"] == LanguageModel.load(base, device="cpu").weights_hash
    turn = TrainingQuestions.read(questions, 0.5).turns(["concise"], need_answer=True)[0]
    row = labelled(model, turn)
    ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
    tuned = float(model.model(input_ids=ids, labels=labels).loss)
    assert tuned < float(LanguageModel.load(base, device="cpu").model(input_ids=ids, labels=labels).loss) - 0.5


def test_a_template_of_its_own_is_kept(base, questions, tmp_path, caplog):
    model = LanguageModel.load(base, device="cpu")
    template = CHAT_TEMPLATE.replace("Question: ", "green ")
    model.tokenizer.chat_template = template
    model.model.save_pretrained(tmp_path / "own")
    model.tokenizer.save_pretrained(tmp_path / "own")
    settings = settings_for("sft", "cpu", **FEW)
    folder = train_from.train_from(str(tmp_path / "own"), "sft", questions, settings, tmp_path)
    assert LanguageModel.load(folder, device="cpu").tokenizer.chat_template == template
    assert json.loads((folder / "training.json").read_text())["chat_template"] == "its own"
    assert "chat template" not in caplog.text


def test_dpo_starts_from_the_reference_and_comes_to_prefer_the_chosen(monkeypatch, sft, questions, tmp_path):
    monkeypatch.setattr(train_from, "own_pairs", pairs_given)
    seen = []
    settings = settings_for("dpo", "cpu", **FEW | {"steps": 10, "learning_rate": 1e-2, "pairs": 8})
    train_from.train_from(sft, "dpo", questions, settings, tmp_path, on_progress=seen.append)
    assert seen[0].loss == pytest.approx(np.log(2), abs=1e-4)
    assert seen[-1].loss < seen[0].loss - 0.1
    assert seen[-1].said == "chosen preferred 100%"


def test_grpo_raises_its_reward(monkeypatch, sft, questions, tmp_path):
    monkeypatch.setattr(train_from, "own_pairs", lambda _, __, turns, *___: [Pair(t, "red", "blue") for t in turns])
    monkeypatch.setattr(train_from, "correct", lambda _b, _turn, answers: [text.count("red") for text in answers])
    seen = []
    settings = settings_for(
        "grpo",
        "cpu",
        **FEW | {"steps": 12, "batch_size": 2, "learning_rate": 3e-2, "samples": 12, "at_once": 6, "longest": 6},
    )
    train_from.train_from(sft, "grpo", questions, settings, tmp_path, on_progress=seen.append)
    rewards = [float(p.said.removeprefix("reward ")) for p in seen]
    assert np.mean(rewards[-2:]) > 1.5 * np.mean(rewards[:2]) + 0.1
    logged = read_log(tmp_path / "grpo" / "steps.jsonl")
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert [round(row["reward"], 3) for row in logged] == rewards


def test_scoring_labelled_positions_alone_is_the_same_training(monkeypatch, base, questions, tmp_path):
    def losses(name: str) -> list[float]:
        seen = []
        settings = settings_for("sft", "cpu", **FEW | {"learning_rate": 1e-2})
        train_from.train_from(base, "sft", questions, settings, tmp_path / name, on_progress=seen.append)
        return [p.loss for p in seen]

    ours = losses("labelled")
    monkeypatch.setattr(tuning, "_labels_alone", nullcontext)
    assert losses("all") == pytest.approx(ours, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_halted_training_ends_with_the_weights_of_one_that_was_not(
    stage, base, sft, questions, monkeypatch, tmp_path
):
    monkeypatch.setattr(train_from, "own_pairs", pairs_given)
    monkeypatch.setattr(train_from, "correct", lambda _b, _turn, answers: [text.count("red") for text in answers])
    start = base if stage == "sft" else sft
    more = {"dpo": {"pairs": 8}, "grpo": {"samples": 8, "longest": 8, "at_once": 8}}.get(stage, {})
    settings = settings_for(stage, "cpu", **FEW | more | {"learning_rate": 1e-2})
    with pytest.raises(Halted):
        train_from.train_from(start, stage, questions, settings, tmp_path / "halted", on_progress=halt_at(3))
    seen, whole = [], []
    halted = train_from.train_from(start, stage, questions, settings, tmp_path / "halted", on_progress=seen.append)
    straight = train_from.train_from(start, stage, questions, settings, tmp_path / "straight", on_progress=whole.append)
    assert [p.step for p in seen] == [4]
    assert seen[0].loss == whole[3].loss
    logs = [read_log(folder / "steps.jsonl") for folder in (halted, straight)]
    assert [[row["step"] for row in log] for log in logs] == [[1, 2, 3, 4]] * 2
    assert [[row["loss"] for row in log] for log in logs] == [[p.loss for p in whole]] * 2
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (halted, straight))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    begun = load_file(Path(start) / "model.safetensors")
    assert any(not torch.equal(ours[k], begun[k]) for k in begun)
    assert not (halted / "unfinished").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = train_from.train_from(start, stage, questions, settings, tmp_path / "straight", on_progress=whole.append)
    assert (again, len(whole)) == (straight, 4)  # and not trained again


def test_a_training_that_diverges_says_so_and_keeps_its_last_good_checkpoint(base, questions, tmp_path):
    settings = settings_for("sft", "cpu", **FEW | {"steps": 6, "learning_rate": 1e30})
    with pytest.raises(UserError, match=r"training diverged at step \d of 6 .*the last good one is .*/step-\d; lower"):
        train_from.train_from(base, "sft", questions, settings, tmp_path)
    assert not (tmp_path / "sft" / "training.json").exists()
