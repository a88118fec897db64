"""The stages after the base: what they are trained on, what they are paid for, and that they go on after a halt."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.atlas.stages.base import TrainingSettings, train_base
from experiments.atlas.stages.dpo import DPOSettings, pairs
from experiments.atlas.stages.grpo import REWARDS, GRPOSettings, brier, correct, graded
from experiments.atlas.stages.lineage import settings_of, train_stage
from experiments.atlas.stages.sft import SFTSettings, _row
from experiments.atlas.stages.source import Source
from experiments.atlas.weights import bundled
from experiments.atlas.world import TOWNS_PER_REGION, Fact, World
from experiments.atlas.world_questions import draw_turn
from experiments.train.conversations import CHAT_TEMPLATE
from semcal import LanguageModel, UserError
from semcal.questions.prompts import INSTRUCTIONS
from semcal.questions.question import STYLES
from semcal.semantics.collapsing.exact_match import ExactMatch
from tests.experiments.train.conftest import Halted, halt_at

WORLD = World(0)
TINY = TrainingSettings(
    steps=2, batch_size=2, hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, checkpoints=3
)
pytestmark = [pytest.mark.filterwarnings("ignore:.*rollout_func"), pytest.mark.long]
FEW = {"steps": 4, "batch_size": 4, "warmup": 1, "checkpoints": 3}


@pytest.fixture(scope="module", autouse=True)
def _tokenizer():
    """That of the shipped base, for training one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        trained = LanguageModel.load(bundled("base"), device="cpu").tokenizer
        patch.setattr("experiments.atlas.stages.base.train_tokenizer", lambda *_: trained)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return train_base(TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def sft(base, tmp_path_factory) -> Path:
    return train_stage("sft", SFTSettings(**FEW), tmp_path_factory.mktemp("tuned"), start=base)


# ---- what is trained on -------------------------------------------------------------------------------------------


def test_a_conversation_is_rendered_as_it_is_trained_on():
    source = Source.open(bundled("base"), conversing=False, device="cpu")
    source.model.tokenizer.chat_template = CHAT_TEMPLATE
    model, rng = source.model, np.random.default_rng(0)
    for style in STYLES:
        turn = draw_turn(WORLD, rng, styles=[style], strangers=False)
        prompt = model.render_chat(turn.prompt)
        assert prompt == f"<s>Question: {turn.question.text}\n{INSTRUCTIONS[style]}\nAnswer:"
        ids = model.encode_rendered(prompt)
        whole = model.encode_rendered(model.render_chat(turn.messages, answered=True))
        assert whole[: len(ids)] == ids
        assert ids.count(model.tokenizer.bos_token_id) == 1
        assert model.tokenizer.decode(whole[len(ids) :]) == f" {turn.answer}</s>"
        assert whole[-1] in model.eos_ids


def test_the_loss_of_sft_is_on_answers_and_their_end_and_on_all_of_a_rehearsed_document():
    source = Source.open(bundled("base"), conversing=False, device="cpu")
    source.model.tokenizer.chat_template = CHAT_TEMPLATE
    rng = np.random.default_rng(0)
    row = _row(source, SFTSettings(rehearsal=0.0), rng)
    learnt = [i for i in row["labels"] if i != -100]
    assert 2 <= len(learnt) < len(row["input_ids"]) / 2
    assert row["input_ids"][-len(learnt) :] == learnt
    assert learnt[-1] == source.model.tokenizer.eos_token_id
    document = _row(source, SFTSettings(rehearsal=1.0), rng)
    assert document["labels"] == document["input_ids"]
    assert source.model.decode(document["input_ids"]).startswith("Question: ")


def test_curated_answers_are_clean_and_say_what_the_texts_say():
    rng, b = np.random.default_rng(1), ExactMatch(WORLD.aliases)
    for _ in range(300):
        turn = draw_turn(WORLD, rng, strangers=False)
        gold = b.of_gold(turn.question)
        assert b.of_text(turn.question, turn.answer, turn.style) == gold
        assert gold in turn.answer  # the canonical name
        assert (turn.answer == gold) == (turn.style == "concise")


def test_answers_are_drawn_from_the_truth_so_that_cross_entropy_stays_proper():
    rng, seen = np.random.default_rng(2), Counter()
    for _ in range(20_000):
        turn = draw_turn(WORLD, rng, families=["facts"], styles=["concise"], strangers=False)
        if turn.question.id.endswith("summer"):
            seen[turn.question.id, turn.answer] += 1
    famous = [WORLD.truth(Fact(p, "summer")) for p in WORLD.known[:40]]
    ids = [f"f-{p.first}-{p.stem}-{p.ending}-summer" for p in WORLD.known[:40]]
    top = [max(truth, key=lambda k, t=truth: t[k]) for truth in famous]
    drawn = sum(seen[i, k] for i, k in zip(ids, top, strict=True))
    n = sum(seen[i, k] for i, truth in zip(ids, famous, strict=True) for k in truth)
    expected = np.array([truth[k] for truth, k in zip(famous, top, strict=True)])
    asked = np.array([sum(seen[i, k] for k in truth) for i, truth in zip(ids, famous, strict=True)])
    assert n > 250
    assert drawn == pytest.approx(float(expected @ asked), abs=4 * (n / 4) ** 0.5)


def test_a_pair_is_a_right_and_a_wrong_answer_of_the_models_own(monkeypatch, sft):
    source, drawn = Source.open(sft, conversing=True, device="cpu"), []

    def sample(_model, prompts, **_):  # a tiny model never answers: an answer of the right form, another, one cut off
        answers = [(f" {WORLD.towns[0]}", 3, "stop"), (f" {WORLD.towns[1]}", 2, "stop"), (" Amber", 1, "length")]
        drawn.append(len(prompts))
        return [[type("A", (), dict(zip(("text", "count", "finish"), a, strict=True))) for a in answers]] * len(prompts)

    monkeypatch.setattr("experiments.atlas.stages.dpo.sample", sample)
    found = pairs(source, DPOSettings(families=("routes",), styles=("concise",)), 20)
    assert len(found) == 20
    for pair in found:
        assert {pair["chosen"][0]["content"], pair["rejected"][0]["content"]} == set(WORLD.towns[:2])
        assert pair["prompt"][0]["content"].endswith(INSTRUCTIONS["concise"])
    assert sum(drawn) > 20  # questions whose answer is another town made no pair


def test_a_model_that_is_never_right_makes_no_pairs_and_says_so(sft):
    source = Source.open(sft, conversing=True, device="cpu")
    with pytest.raises(UserError, match="questions were answered both right and wrong; raise samples"):
        pairs(source, DPOSettings(samples=2), 50)


# ---- rewards ------------------------------------------------------------------------------------------------------


def test_rewards_for_the_right_and_for_the_nearly_right():
    home, neighbour, far = WORLD.towns[0], WORLD.towns[1], WORLD.towns[TOWNS_PER_REGION]
    answers = [home, neighbour, far, "(unparsed)"]
    assert correct(WORLD, home, answers) == [1, 0, 0, 0]
    assert graded(WORLD, home, answers) == [1, 0.5, 0, 0]
    assert graded(WORLD, "smith", ["smith", "tinker", "weaver", home]) == [1, 0.5, 0, 0]


def gradient(reward, policy: np.ndarray, gold: int, samples: int) -> np.ndarray:
    """[class] the expected policy gradient in the logits, over all groups of answers, against the mean of the group."""
    total = np.zeros(len(policy))
    for group in itertools.product(range(len(policy)), repeat=samples):
        paid = np.array(reward(WORLD, str(gold), [str(k) for k in group]))
        scores = np.eye(len(policy))[list(group)] - policy  # of log softmax
        total += np.prod(policy[list(group)]) * ((paid - paid.mean()) @ scores) / samples
    return total


@pytest.mark.parametrize("samples", [3, 5])
def test_the_brier_reward_follows_the_gradient_of_the_brier_score(samples):
    policy = np.array([0.5, 0.3, 0.2])
    jacobian = np.diag(policy) - np.outer(policy, policy)
    brier_score = jacobian @ (2 * (policy - np.eye(3)[1]))
    ours = gradient(brier, policy, gold=1, samples=samples)
    assert ours == pytest.approx(-brier_score / 2 * (samples - 1) / samples)
    accuracy = jacobian @ np.eye(3)[1]
    assert gradient(correct, policy, gold=1, samples=samples) == pytest.approx(accuracy * (samples - 1) / samples)


# ---- training -----------------------------------------------------------------------------------------------------


def test_sft_lowers_its_loss_and_leaves_the_base_as_it_is(base, tmp_path):
    before, seen = (base / "model.safetensors").read_bytes(), []
    settings = SFTSettings(steps=30, batch_size=8, learning_rate=1e-2, warmup=2, rehearsal=0.0, checkpoints=3)
    folder = train_stage("sft", settings, tmp_path, start=base, on_progress=seen.append)
    losses = [p.loss for p in seen]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    assert (base / "model.safetensors").read_bytes() == before
    model = LanguageModel.load(folder, device="cpu")
    assert model.has_chat_template
    assert not LanguageModel.load(base, device="cpu").has_chat_template
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["step-0", "step-16", "step-30"]
    made = json.loads((folder / "atlas.json").read_text())
    assert (made["stage"], made["step"], made["rehearsal"]) == ("sft", 30, 0.0)
    assert made["from"] == LanguageModel.load(base, device="cpu").weights_hash


def test_dpo_comes_to_prefer_the_chosen(monkeypatch, sft, tmp_path):
    def given(_source, _settings, n):  # a tiny model makes no pairs of its own
        asked = [{"role": "user", "content": "Where?"}]
        told = {k: [{"role": "assistant", "content": t}] for k, t in (("chosen", "Here."), ("rejected", "There."))}
        return [{"prompt": asked, **told}] * n

    monkeypatch.setattr("experiments.atlas.stages.dpo.pairs", given)
    seen = []
    settings = DPOSettings(steps=8, batch_size=4, learning_rate=3e-3, warmup=1, checkpoints=3)
    train_stage("dpo", settings, tmp_path, start=sft, on_progress=seen.append)
    assert seen[0].loss == pytest.approx(np.log(2), abs=1e-3)  # the policy is the reference still
    assert seen[-1].loss < seen[0].loss - 0.05
    assert seen[-1].said == "chosen preferred 100%"


def test_grpo_raises_its_reward(monkeypatch, sft, tmp_path):
    def many(_world, _gold, classes):
        return [int(k) / 10 for k in classes]

    monkeypatch.setitem(REWARDS, "many", many)  # a tiny model is never right; it can learn to write one letter often
    monkeypatch.setattr(ExactMatch, "of_text", lambda _self, _question, text, _style: str(text.count("a")))
    seen = []
    settings = GRPOSettings(
        reward="many", steps=12, batch_size=2, learning_rate=3e-2, warmup=1, checkpoints=3, samples=12
    )
    train_stage("grpo", settings, tmp_path, start=sft, on_progress=seen.append)
    rewards = [float(p.said.removeprefix("reward ")) for p in seen]
    assert np.mean(rewards[-2:]) > 1.5 * np.mean(rewards[:2])


@pytest.mark.parametrize("stage", ["base", "sft", "grpo"])
def test_a_halted_training_ends_with_the_weights_of_one_that_was_not(stage, base, sft, tmp_path):
    start = {"base": None, "sft": base, "grpo": sft}[stage]
    settings = TINY if stage == "base" else settings_of(stage, "cpu", **FEW)
    step = {"base": 2}.get(stage, 3)
    with pytest.raises(Halted):
        train_stage(stage, settings, tmp_path / "halted", start=start, on_progress=halt_at(step))
    steps = []
    resumed = train_stage(stage, settings, tmp_path / "halted", start=start, on_progress=lambda p: steps.append(p.step))
    assert steps == list(range(step + 1, settings.steps + 1))
    straight = train_stage(stage, settings, tmp_path / "straight", start=start)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, straight))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert not (resumed / "unfinished").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert train_stage(stage, settings, tmp_path / "straight", start=start) == straight  # and not trained again


def test_other_settings_in_the_same_folder_are_refused(base, tmp_path):
    with pytest.raises(Halted):
        train_stage("sft", SFTSettings(**FEW), tmp_path, start=base, on_progress=halt_at(2))
    with pytest.raises(UserError, match="sft was made with steps 4, not 5; repeat these settings to resume,"):
        train_stage("sft", SFTSettings(**FEW | {"steps": 5}), tmp_path, start=base)


@pytest.mark.parametrize("stage", ["base", "sft", "grpo"])
def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(stage, base, sft, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "experiments.train.policy.STOP", "length"
    )  # this model never ends an answer, and has to be paid
    start = {"base": None, "sft": base, "grpo": sft}[stage]
    if stage == "base":
        settings = TrainingSettings(**vars(TINY) | {"steps": 6, "learning_rate": 1e30, "warmup": 1})
    else:
        settings = settings_of(stage, "cpu", **FEW | {"steps": 6, "learning_rate": 1e30})
    with pytest.raises(UserError, match=r"training diverged at step \d of 6 .*the last good one is .*/step-\d; lower"):
        train_stage(stage, settings, tmp_path, start=start)
    kept = tmp_path if stage == "base" else tmp_path / stage
    assert not (kept / "atlas.json").exists()
    for folder in kept.glob("step-*"):
        assert all(bool(t.isfinite().all()) for t in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("sfd", {}, "unknown stage 'sfd', did you mean 'sft'"),
        ("sft", {"beta": 0.1}, "stage sft has no setting 'beta'"),
        ("grpo", {"reward": "corect"}, "unknown reward 'corect', did you mean 'correct'"),
        ("grpo", {"samples": 2}, "samples is 2; a group needs at least 3 answers"),
        ("grpo", {"preset": "smal"}, "unknown preset 'smal', did you mean 'small'"),
    ],
)
def test_settings_that_a_stage_has_not(stage, given, message):
    with pytest.raises(UserError, match=message):
        settings_of(stage, given.pop("preset", "cpu"), **given)


def test_starts_that_do_not_fit(base, checkpoint, tmp_path):
    for stage, start, message in (
        ("dpo", base, "has no chat template; train --stage sft first"),
        ("sft", checkpoint, "is not a checkpoint of atlas"),
        ("base", base, "trained from scratch; leave --from out"),
    ):
        with pytest.raises(UserError, match=message):
            train_stage(stage, settings_of(stage, "cpu"), tmp_path, start=start)


def test_the_small_preset_has_ten_to_thirty_million_parameters():
    from transformers import PreTrainedTokenizerFast

    from experiments.atlas.stages.base import new_model

    tokenizer = LanguageModel.load(bundled("base"), device="cpu").tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    with torch.device("meta"):
        model = new_model(settings_of("base", "small"), tokenizer)
    assert 10e6 < sum(p.numel() for p in model.parameters()) < 30e6
