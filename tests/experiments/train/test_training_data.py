"""What stages of any model are trained on, what they are paid for, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.config.study import load_study
from experiments.pipeline.run_study import prepare_study
from experiments.train import own_pairs, policy, train_from
from experiments.train.adapter import Adapted
from experiments.train.conversations import CHAT_TEMPLATE, Turn, labelled
from experiments.train.preferences import Pair
from experiments.train.stage_settings import PairSettings, settings_for
from experiments.train.training_questions import TrainingQuestions, right, shuffled
from semcal import LanguageModel, Question, UserError
from semcal.questions.load_dataset import read_table
from semcal.semantics.collapsing.exact_match import ExactMatch
from tests.experiments.conftest import write_study
from tests.experiments.train.conftest import FEW, Halted, halt_at, table

pytestmark = pytest.mark.filterwarnings("ignore:.*rollout_func")
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


@pytest.mark.parametrize("start", ["a stage", "a checkpoint along the way", "an adapter to a stage"])
def test_questions_of_earlier_stages_stay_on_record(start, sft, questions, monkeypatch, tmp_path):
    if start == "an adapter to a stage":
        Adapted.of(LanguageModel.load(sft, device="cpu"), rank=2, seed=0).write_adapter(tmp_path / "adapter")
    places = {"a stage": sft, "a checkpoint along the way": f"{sft}/step-4", "an adapter to a stage": "adapter"}
    begun = str(tmp_path / places[start])
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(json.dumps({"id": f"o{i}", "question": f"two {i}", "answers": ["red"]}) for i in range(20))
    )
    settings = settings_for("grpo", "cpu", **FEW | {"steps": 1, "samples": 4, "longest": 2})
    monkeypatch.setattr(train_from, "own_pairs", lambda _, __, turns, *___: [Pair(t, "red", "blue") for t in turns])
    folder = train_from.train_from(begun, "grpo", str(other), settings, tmp_path)
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


def test_answers_end_where_the_chat_template_ends_them(base, questions, monkeypatch, tmp_path):
    """As with Gemma's <end_of_turn>, which is not its end-of-sequence token."""
    model = LanguageModel.load(base, device="cpu")
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    model.model.resize_token_embeddings(len(model.tokenizer))
    model.tokenizer.chat_template = CHAT_TEMPLATE.replace("eos_token if", "'<turn>' if")
    kept = TrainingQuestions.read(questions, 0.5)
    turns = kept.turns(("concise",), need_answer=False)[:8]
    asked = []

    def never_right(_, prompts, **how):
        asked.append(how["stop"])
        return [()] * len(prompts)

    monkeypatch.setattr(own_pairs, "sample", never_right)
    monkeypatch.setattr(policy, "sample", never_right)
    settings = PairSettings(pairs=2, samples=4, longest=4)
    with pytest.raises(UserError, match="only 0 of 8 questions"):
        own_pairs.own_pairs(model, settings, turns, kept.collapse(("concise",)), tmp_path / "p.jsonl", lambda _: None)
    policy.rollout(model, settings_for("grpo", "cpu", **FEW), ["the red ?"], 0, 4)  # pyright: ignore[reportArgumentType]
    assert asked == [("<turn>",), ("<turn>",)]


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
    settings, halt = PairSettings(steps=12, pairs=12, batch_size=4, seed=3), 0
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
    few = PairSettings(steps=60, pairs=100, batch_size=64, seed=3)
    message = (
        r"only \d+ of \d+ questions were answered both right and wrong, and 960 are needed for 60 steps of 64; raise"
    )
    with pytest.raises(UserError, match=message):
        own_pairs.own_pairs(model, few, turns, b, tmp_path / "few.jsonl", lambda _: None)


def test_an_answer_that_does_not_end_is_paid_nothing(sft, questions):
    """Else a model is paid for a right first line, however long it goes on."""
    model = LanguageModel.load(sft, device="cpu")
    turns = TrainingQuestions.read(questions, 0.5).turns(("concise",), need_answer=False)[:2]
    settings = settings_for("grpo", "cpu", **FEW | {"samples": 3, "at_once": 6})
    stage = policy.policy_stage(settings, model, turns, lambda _, answers: [1.0] * len(answers), longest=4)  # pyright: ignore
    paid = stage.given["reward_funcs"]
    ended = [True, False, True, False, False, True]
    assert paid(["red"] * 6, [0] * 3 + [1] * 3, ended=ended, prompts=[]) == [1, 0, 1, 0, 0, 1]
    drawn = policy.rollout(model, settings, ["the red ?"] * 3, 0, 4)  # pyright: ignore[reportArgumentType]
    for ids, end in zip(drawn["completion_ids"], drawn["ended"], strict=True):
        assert end == (ids[-1] in model.eos_ids)
        assert end or len(ids) == 4


def test_policies_are_trained_on_questions_that_are_answered_both_right_and_wrong(
    sft, questions, monkeypatch, tmp_path
):
    mixed = []

    def some(_, settings, turns, b, file, tell):  # noqa: ARG001
        mixed.extend(turns[3:7])
        return [Pair(turn, "red", "blue") for turn in mixed]

    asked = []
    monkeypatch.setattr(train_from, "own_pairs", some)
    monkeypatch.setattr(train_from, "correct", lambda _b, turn, answers: asked.append(turn) or [0.0] * len(answers))
    settings = settings_for(
        "grpo", "cpu", **FEW | {"steps": 4, "batch_size": 2, "samples": 4, "at_once": 8, "longest": 3}
    )
    train_from.train_from(sft, "grpo", questions, settings, tmp_path)
    assert sorted(t.key for t in asked) == sorted(2 * [t.key for t in mixed])


def test_a_training_goes_on_wherever_its_files_lie(base, questions, tmp_path):
    """What decides is the weights and the questions, not what they are called."""
    settings = settings_for("sft", "cpu", **FEW)
    with pytest.raises(Halted):
        train_from.train_from(base, "sft", questions, settings, tmp_path / "out", on_progress=halt_at(3))
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    again = tmp_path / "again"
    again.mkdir()
    (again / "colours.jsonl").write_bytes(Path(questions).read_bytes())
    seen = []
    how = {"on_progress": seen.append}
    folder = train_from.train_from(str(moved), "sft", str(again / "colours.jsonl"), settings, tmp_path / "out", **how)
    assert [p.step for p in seen] == [4]
    assert json.loads((folder / "training.json").read_text())["from"] == str(moved)
    other = table(tmp_path, n=70)
    with pytest.raises(UserError, match=r"was made with trained_(questions|on)"):
        train_from.train_from(base, "sft", str(other), settings, tmp_path / "out")


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


def test_what_is_on_the_disk_already_needs_no_room_there(base, questions, monkeypatch, tmp_path):
    """A tokenizer is taken to have 40 MB: with the three checkpoints and the last one 160 MB, after one of them 120."""

    def with_free(size: float, **how) -> Path:
        with monkeypatch.context() as disk:
            disk.setattr(train_from.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
            return train_from.train_from(base, "sft", questions, settings_for("sft", "cpu", **FEW), tmp_path, **how)

    with pytest.raises(UserError, match=r"needs 0\.2 GB and the disk has 0\.1 GB free"):
        with_free(140e6)
    with pytest.raises(Halted):
        with_free(1e9, on_progress=halt_at(3))
    folder = with_free(140e6)
    assert (folder / "training.json").is_file()
    assert with_free(0) == folder


def test_other_settings_or_questions_in_the_same_folder_are_refused(base, questions, tmp_path):
    train("sft", base, questions, tmp_path, steps=1)
    with pytest.raises(
        UserError,
        match=r"sft was made with steps 1, not 2; repeat these settings to resume, choose .*, or move .*sft away",
    ):
        train("sft", base, questions, tmp_path, steps=2)
    fewer = table(tmp_path, n=60)
    with pytest.raises(UserError, match="sft was made with trained_"):
        train("sft", base, str(fewer), tmp_path, steps=1)
