"""Stages of any model: what they train on, what they are paid for, that they go on after a halt, what they refuse."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.config.study import load_study
from experiments.pipeline.run_study import prepare_study
from experiments.train import own_pairs, train_from
from experiments.train.conversations import CHAT_TEMPLATE, Turn, labelled
from experiments.train.preferences import Pair
from experiments.train.stage_settings import PairSettings, settings_for
from experiments.train.training_questions import TrainingQuestions, right, shuffled
from semcal import LanguageModel, Question, UserError
from semcal.questions.load_dataset import read_table
from semcal.semantics.collapsing.exact_match import ExactMatch
from tests.conftest import save_checkpoint
from tests.experiments.conftest import write_study

pytestmark = pytest.mark.filterwarnings("ignore:.*rollout_func")
COLOURS = ("red", "blue", "green", "one", "two", "three")
FEW = {"steps": 4, "batch_size": 4, "warmup": 1, "checkpoints": 3, "rank": 2}


class Halted(Exception):
    """As if the process had been killed."""


def halt_at(step: int):
    def watch(progress):
        if progress.step == step:
            raise Halted

    return watch


def table(folder: Path, n: int = 80, **more) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "question": f"the {COLOURS[i % 6]} {COLOURS[i // 6 % 6]} {COLOURS[i // 36]}",
            "group": f"g{i // 2}",
        }
        | {"answers": [COLOURS[i % 4], COLOURS[i % 4].upper()]}
        | more
        for i in range(n)
    ]
    file = folder / "colours.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    return str(table(tmp_path_factory.mktemp("questions")))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("base") / "llama", scale=4.0))


@pytest.fixture(scope="module")
def sft(base, questions, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("lineage")
    return str(train_from.train_from(base, "sft", questions, settings_for("sft", "cpu", **FEW), out))


def pairs_given(_model, settings, turns, *_):
    """A tiny model is never right: pairs as if it were."""
    return [Pair(turn, "red", "blue") for turn in turns[: settings.pairs]]


# ---- the questions ------------------------------------------------------------------------------------------------


def test_training_and_evaluation_share_no_group_and_no_text(questions, sft, tmp_path):
    split = TrainingQuestions.read(questions, 0.5)
    assert 20 <= len(split.trained) <= 60
    recorded = read_table(Path(sft) / "trained.jsonl")
    assert {q.id for q in recorded} == {q.id for q in split.trained}
    exclude = f"{sft}/trained.jsonl"
    study = {
        "name": "held-out",
        "models": [{"path": sft, "device": "cpu", "prompt": "chat"}],
        "datasets": [{"kind": "jsonl", "path": questions, "exclude": exclude}],
        "styles": ["concise"],
        "output": str(tmp_path / "runs"),
        "prompting": {"shots": 0},
    }
    asked = prepare_study(load_study(write_study(tmp_path, study))).datasets["colours"].questions
    assert len(asked) == 80 - len(recorded)
    assert not {q.group for q in asked} & {q.group for q in recorded}
    assert not {q.text for q in asked} & {q.text for q in recorded}
    del study["datasets"][0]["exclude"]
    with pytest.raises(
        UserError, match=rf"was trained on {len(recorded)} of the 80 questions of colours; add exclude: "
    ):
        prepare_study(load_study(write_study(tmp_path, study)))


def test_the_split_depends_on_the_label_of_a_group_alone(questions, tmp_path):
    whole = TrainingQuestions.read(questions, 0.5)
    half = TrainingQuestions.read(str(table(tmp_path, n=40)), 0.5)
    assert {q.id for q in half.trained} == {q.id for q in whole.trained if int(q.id[1:]) < 40}
    more = TrainingQuestions.read(questions, 0.3)
    assert {q.id for q in whole.trained} < {q.id for q in more.trained}


def test_questions_of_earlier_stages_stay_on_record(sft, questions, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(json.dumps({"id": f"o{i}", "question": f"two {i}", "answers": ["red"]}) for i in range(20))
    )
    settings = settings_for("grpo", "cpu", **FEW | {"steps": 1, "samples": 4, "longest": 2})
    folder = train_from.train_from(sft, "grpo", str(other), settings, tmp_path)
    recorded = {q.id for q in read_table(folder / "trained.jsonl")}
    assert recorded == {
        q.id
        for q in (*TrainingQuestions.read(questions, 0.5).trained, *TrainingQuestions.read(str(other), 0.5).trained)
    }


def test_every_question_is_seen_in_every_style_before_any_is_seen_again(questions):
    split = TrainingQuestions.read(questions, 0.5)
    turns = split.turns(["concise", "sentence"], need_answer=True)
    stream = shuffled(turns, 0, "sft")
    rounds = [[next(stream) for _ in turns] for _ in range(2)]
    for one in rounds:
        assert {t.key for t in one} == {f"{q.id}/{s}" for q in split.trained for s in ("concise", "sentence")}
    assert [t.key for t in rounds[0]] != [t.key for t in rounds[1]]
    for turn in rounds[0]:
        gold = turn.question.answers[0]
        assert turn.answer == (gold if turn.style == "concise" else f"The answer is {gold}.")


# ---- conversations and rewards ------------------------------------------------------------------------------------


def test_the_loss_covers_the_answer_and_its_end(base):
    model = LanguageModel.load(base, device="cpu")
    turn = Turn(Question(id="q", text="red ?", answers=("blue",)), "concise", "blue green")
    for template, after in (
        (CHAT_TEMPLATE, "</s>"),
        (CHAT_TEMPLATE.replace("{{ eos_token if", "{{ eos_token + ' red' if"), "</s>"),  # more after the end
        (CHAT_TEMPLATE.replace("{{ eos_token if", "{{ '' if"), "</s>"),  # no end
    ):
        model.tokenizer.chat_template = template
        row = labelled(model, turn)
        learnt = [i for i in row["labels"] if i != -100]
        assert model.tokenizer.decode(learnt) == f"blue green {after}"
        assert row["input_ids"][-len(learnt) :] == learnt
        assert tuple(row["input_ids"][: -len(learnt)]) == model.encode_rendered(model.render_chat(turn.prompt))
    model.tokenizer.chat_template = CHAT_TEMPLATE.replace("'Answer:' if", "' green' if")
    with pytest.raises(UserError, match="the answer to 'q' does not follow the prompt"):
        labelled(model, turn)


def test_the_reward_is_to_be_correct_in_any_form_that_b_knows():
    question = Question(id="q", text="?", answers=("Paris", "City of Light"), others=(("Lutetia",),))
    b = ExactMatch(pooled={"paris": "paris", "city of light": "paris"})
    answers = ["paris.", "The city of light", "Lutetia", "London", ""]
    assert train_from.correct(b, Turn(question, "concise", ""), answers) == [1, 1, 1, 0, 0]
    told = ["The answer is Paris.", "It is Paris.", "Paris is the answer.", "The answer is London."]
    assert right(b, Turn(question, "sentence", ""), told) == [True, True, False, False]


Drawn = namedtuple("Drawn", "text count finish")


def test_a_pair_is_a_right_and_a_wrong_answer_of_the_models_own(sft, questions, monkeypatch, tmp_path):
    model = LanguageModel.load(sft, device="cpu")
    split, calls = TrainingQuestions.read(questions, 0.5), []
    b, turns = split.collapse(["concise"]), split.turns(["concise"], need_answer=False)

    def sample(_model, prompts, **settings):
        assert settings["seed"] == 3
        calls.append([p.key for p in prompts])
        if len(calls) == halt:
            raise Halted
        return [[Drawn(" red", 3, "stop"), Drawn(" blue", 2, "stop"), Drawn(" green", 1, "length")]] * len(prompts)

    monkeypatch.setattr(own_pairs, "sample", sample)
    monkeypatch.setattr(own_pairs, "_AT_ONCE", 8)
    settings, halt = PairSettings(pairs=12, batch_size=4, seed=3), 0
    found = own_pairs.own_pairs(model, settings, turns, b, tmp_path / "straight.jsonl", lambda _: None)
    assert len(found) == 12
    for pair in found:  # red and blue are right for two questions of four; green never ended
        assert pair.chosen == pair.turn.question.answers[0]
        assert {pair.chosen, pair.rejected} == {"red", "blue"}
        assert pair.row["prompt"] == pair.turn.prompt

    calls, halt = [], 2
    with pytest.raises(Halted):
        own_pairs.own_pairs(model, settings, turns, b, tmp_path / "halted.jsonl", lambda _: None)
    with (tmp_path / "halted.jsonl").open("a") as file:
        file.write('{"question": "q')  # killed while writing
    asked, calls, halt = calls[0], [], 0
    again = own_pairs.own_pairs(model, settings, turns, b, tmp_path / "halted.jsonl", lambda _: None)
    assert again == found
    assert not set(asked) & {key for some in calls for key in some}
    assert (tmp_path / "halted.jsonl").read_text() == (tmp_path / "straight.jsonl").read_text()
    with pytest.raises(UserError, match="was drawn from other questions"):
        own_pairs.own_pairs(model, settings, turns[::-1], b, tmp_path / "halted.jsonl", lambda _: None)
    few = PairSettings(pairs=100, batch_size=64, seed=3)
    with pytest.raises(
        UserError, match=r"only \d+ of \d+ questions were answered both right and wrong, fewer than one"
    ):
        own_pairs.own_pairs(model, few, turns, b, tmp_path / "few.jsonl", lambda _: None)


# ---- training -----------------------------------------------------------------------------------------------------


def test_sft_learns_gold_answers_and_writes_a_plain_model(base, questions, tmp_path, caplog):
    before, seen = (Path(base) / "model.safetensors").read_bytes(), []
    settings = settings_for("sft", "cpu", steps=40, batch_size=8, learning_rate=1e-2, warmup=2, checkpoints=3)
    folder = train_from.train_from(base, "sft", questions, settings, tmp_path, on_progress=seen.append)
    assert np.mean([p.loss for p in seen[-5:]]) < np.mean([p.loss for p in seen[:5]]) - 0.5
    assert (Path(base) / "model.safetensors").read_bytes() == before
    assert "has no chat template; the default one is used: question-answer" in caplog.text
    model = LanguageModel.load(folder, device="cpu")
    assert model.tokenizer.chat_template == CHAT_TEMPLATE
    assert not (folder / "adapter_config.json").exists()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["step-0", "step-16", "step-40"]
    for step in ("step-0", "step-40"):
        assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"} <= {
            p.name for p in (folder / step).iterdir()
        }
    made = json.loads((folder / "training.json").read_text())
    assert (made["stage"], made["step"], made["chat_template"]) == ("sft", 40, "question-answer")
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


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_halted_training_ends_with_the_weights_of_one_that_was_not(
    stage, base, sft, questions, monkeypatch, tmp_path
):
    monkeypatch.setattr(train_from, "own_pairs", pairs_given)
    monkeypatch.setattr(train_from, "correct", lambda _b, _turn, answers: [text.count("red") for text in answers])
    start = base if stage == "sft" else sft
    more = {"dpo": {"pairs": 8}, "grpo": {"samples": 4, "longest": 4, "at_once": 8}}.get(stage, {})
    settings = settings_for(stage, "cpu", **FEW | more | {"learning_rate": 1e-2})
    with pytest.raises(Halted):
        train_from.train_from(start, stage, questions, settings, tmp_path / "halted", on_progress=halt_at(3))
    seen, whole = [], []
    halted = train_from.train_from(start, stage, questions, settings, tmp_path / "halted", on_progress=seen.append)
    straight = train_from.train_from(start, stage, questions, settings, tmp_path / "straight", on_progress=whole.append)
    assert [p.step for p in seen] == [4]
    assert seen[0].loss == whole[3].loss
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (halted, straight))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    begun = load_file(Path(start) / "model.safetensors")
    assert any(not torch.equal(ours[k], begun[k]) for k in begun)
    assert not (halted / "unfinished").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = train_from.train_from(start, stage, questions, settings, tmp_path / "straight", on_progress=whole.append)
    assert (again, len(whole)) == (straight, 4)  # and not trained again


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("sfd", {}, "unknown stage 'sfd', did you mean 'sft'"),
        ("base", {}, "unknown stage 'base'; expected one of sft, dpo, grpo"),
        ("sft", {"preset": "gpt"}, "unknown preset 'gpt', did you mean 'gpu'"),
        ("sft", {"beta": 0.1}, "stage sft has no setting 'beta'"),
        ("sft", {"families": ["facts"]}, "stage sft has no setting 'families'"),
        ("sft", {"steps": 0}, "steps is 0; expected a value of at least 1 such as"),
        ("sft", {"steps": 1.5}, "steps is 1.5; expected"),
        ("sft", {"rank": 0}, "rank is 0; expected a value of at least 1"),
        ("sft", {"held_out": 1.0}, "held_out is 1.0; expected a share between 0 and 1"),
        ("sft", {"held_out": 0}, "held_out is 0.0; expected a share between 0 and 1"),
        ("sft", {"styles": ["consise"]}, "styles: unknown name 'consise', did you mean 'concise'"),
        ("sft", {"styles": []}, "styles is []; expected some of concise, sentence, cot"),
        ("sft", {"styles": 3}, "styles is 3; expected some of"),
        ("sft", {"dtype": "bf16"}, "unknown dtype 'bf16', did you mean 'bfloat16'"),
        ("sft", {"learning_rate": float("nan")}, "learning_rate is nan; expected"),
        ("sft", {"learning_rate": float("inf")}, "learning_rate is inf; expected"),
        ("dpo", {"samples": 1}, "samples is 1; expected a value of at least 2"),
        ("grpo", {"samples": 5}, "at_once is 16; expected a divisor of batch_size · samples = 40"),
    ],
)  # fmt: skip
def test_settings_that_a_stage_has_not(stage, given, message):
    with pytest.raises(UserError) as error:
        settings_for(stage, given.pop("preset", "cpu"), **given)
    assert message in str(error.value)


def test_presets_are_settings_of_their_stage():
    for stage in ("sft", "dpo", "grpo"):
        assert settings_for(stage, "cpu").dtype == "float32"
        assert settings_for(stage, "gpu").dtype == "bfloat16"


def train(stage: str, start: str, dataset: str, out: Path, **given) -> Path:
    return train_from.train_from(start, stage, dataset, settings_for(stage, "cpu", **FEW | given), out)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(base, sft, questions, monkeypatch, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"id": "1", "question": "?!", "answers": ["x"]}')
    truths = tmp_path / "truth.jsonl"
    row = {"question": "red ?", "best_answer": "blue", "correct_answers": ["blue"], "incorrect_answers": ["one"]}
    truths.write_text("\n".join(json.dumps(row | {"question": f"red {i} ?"}) for i in range(20)))
    out = tmp_path / "out"
    for stage, start, dataset, given, message in (
        ("sft", base, "trivaqa", {}, "no dataset 'trivaqa', did you mean 'triviaqa'"),
        ("sft", base, "questions.txt", {}, "no dataset 'questions.txt'"),
        ("sft", base, "triviaqa:/nowhere.csv", {}, "no file /nowhere.csv"),
        ("sft", base, str(tmp_path / "none.jsonl"), {}, "no file"),
        ("sft", base, str(tmp_path / "one.jsonl"), {}, "no question is left to"),
        ("sft", base, questions, {"held_out": 1e-9}, "no question is left to evaluate"),
        ("sft", base, questions, {"held_out": 1 - 1e-9}, "no question is left to train on"),
        ("sft", base, questions, {"styles": ["cot"]}, "no question has a worked answer in style cot"),
        ("sft", "/nowhere/at/all", questions, {}, "no folder /nowhere/at/all"),
        ("dpo", base, questions, {}, "has no chat template; train --stage sft first and start dpo from the folder"),
        ("grpo", base, questions, {}, "has no chat template; train --stage sft first and start grpo from the folder"),
        ("dpo", sft, f"truthfulqa:{truths}", {}, "truthfulqa has no collapsing function of its own"),
        ("grpo", sft, questions, {"longest": 5000}, "no question fits into the context"),
    ):
        with pytest.raises(UserError, match=message) as error:
            train(stage, start, dataset, out, **given)
        assert "\n" not in str(error.value)
        assert not out.exists()
    monkeypatch.setattr(train_from.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"needs \d+\.\d GB and the disk has 0\.0 GB free; make room, choose another --out"
    ):
        train("sft", base, questions, out)
    assert not out.exists()


def test_other_settings_or_questions_in_the_same_folder_are_refused(base, questions, tmp_path):
    train("sft", base, questions, tmp_path, steps=1)
    with pytest.raises(UserError, match="sft was made with steps 1, not 2; repeat these settings to resume, or choose"):
        train("sft", base, questions, tmp_path, steps=2)
    fewer = table(tmp_path, n=60)
    with pytest.raises(UserError, match="sft was made with dataset"):
        train("sft", base, str(fewer), tmp_path, steps=1)


def test_a_training_that_diverges_says_so_and_keeps_its_last_good_checkpoint(base, questions, tmp_path):
    with pytest.raises(UserError, match=r"training diverged at step \d of 6 .*the last good one is .*/step-\d; lower"):
        train("sft", base, questions, tmp_path, steps=6, learning_rate=1e30)
    assert not (tmp_path / "sft" / "training.json").exists()
