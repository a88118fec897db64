"""A study from its file to its tables: killed and resumed, scored again, refused if its folder holds another run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.config.run_folder import check_folder
from experiments.config.study import load_study
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import LanguageModel, Run, UserError
from semcal.errors import NonFiniteError
from semcal.runs.claims import WRITING
from tests.conftest import save_checkpoint, word_tokenizer
from tests.experiments.conftest import Reporter, questions_in, run_dict, study_of, write_study

SAMPLED: dict[str, Any] = {"probes": {"enabled": False}}  # where a test asks about sampling alone
LOGGED: dict[str, Any] = {"tracking": {"wandb": "offline", "project": "tests"}}


def tables(run: Run) -> dict[str, pd.DataFrame]:
    return {"questions": run.questions(), "samples": run.samples(), "classes": run.classes(), "probes": run.probes()}


def assert_same(one: Run, two: Run) -> None:
    for name, table in tables(one).items():
        pd.testing.assert_frame_equal(table, tables(two)[name])
    assert one.calibration() == two.calibration()
    a, b = one.activations("last_prompt_token"), two.activations("last_prompt_token")
    np.testing.assert_array_equal(a.values, b.values)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> tuple[dict[str, Any], Run]:
    """A study of one run, with its page and what was logged of it; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    study = study_of(checkpoint, questions_in(folder), folder)
    study["prompting"]["vary"] = "run"
    (run,) = run_dict(folder, study | LOGGED, drawn=True)
    return study, run


@pytest.fixture
def copied(finished, tmp_path) -> tuple[dict[str, Any], Run]:
    """The same in a folder of its own."""
    study, run = finished
    shutil.copytree(study["output"], tmp_path / "runs")
    return study | {"output": str(tmp_path / "runs")}, Run.open(tmp_path / "runs" / "small" / run.folder.name)


def test_a_run_folder_holds_what_it_should(finished):
    _, run = finished
    samples = run.samples()
    assert samples.groupby("question_id")["count"].sum().eq(8).all()
    assert samples["question_id"].nunique() == 48
    classes = run.classes()
    assert classes.groupby("question_id")["count"].sum().eq(8).all()
    assert classes.groupby("question_id")["gold"].sum().eq(1).all()
    stored = run.activations("last_prompt_token")
    assert stored.values.shape == (48, 4, 32)
    assert set(run.probes()["target"]) == {"classes", "b_confidence"}
    assert list(run.probes().query("target == 'classes' and rung == 'linear'")["layer"]) == list(stored.layers)
    for name in ("config.yaml", "report.html", "figures/reliability.png", "figures/layers.svg"):
        assert (run.folder / name).is_file(), name
    manifest = run.manifest()
    assert manifest["weights_hash"].startswith("sha256:")
    assert manifest["sampling"]["top_k"] is None
    assert manifest["packages"]["torch"]


def test_samples_and_activations_come_from_the_same_token_ids(finished, checkpoint):
    _, run = finished
    model = LanguageModel.load(checkpoint, device="cpu")
    stored = run.activations("last_prompt_token")
    for at, prompt in enumerate(run.questions()["prompt"][:10]):
        ids = model.encode(prompt)
        assert stored.token_ids[at] == ids[-1]
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(stored.values[at, 1], hidden[1][0, -1], rtol=1e-3, atol=1e-5)
        assert ids.count(model.tokenizer.bos_token_id) == 1


def test_a_finished_study_is_not_run_again(tmp_path, copied, monkeypatch):
    study, run = copied
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("loaded a model again"))
    run_dict(tmp_path, study | LOGGED)
    assert {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file()} == before


@pytest.mark.long
def test_the_batch_a_question_fell_into_does_not_matter(tmp_path, study_dict):
    sampled = study_dict | SAMPLED
    (one,) = run_dict(tmp_path, sampled, "name=one", "sampling.max_rows=1")
    (two,) = run_dict(tmp_path, sampled, "name=two", "sampling.max_rows=7", "sampling.shard_size=48")
    columns = ["question_id", "token_ids", "count", "finish"]
    key = [s[columns].astype({"token_ids": str}) for s in (one.samples(), two.samples())]
    same = [
        a.equals(b.set_axis(a.index))
        for (_, a), (_, b) in zip(key[0].groupby("question_id"), key[1].groupby("question_id"), strict=True)
    ]
    assert np.mean(same) >= 0.999


# A process that has everything imported forks a child for each attempt: first one that is left alone, then one in
# another folder that is killed at ten random moments and run to its end. Every answered question is written down.
ZYGOTE = """
import os, random, signal, sys, time
from threading import RLock
import torch
from tqdm import tqdm
from experiments.config.study import load_study
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.pipeline import run_study as pipeline
from experiments.sample import portions
from tests.experiments.conftest import Reporter

torch.set_num_threads(1)
pipeline.write_report = lambda _, run: (run.folder / "report.html").write_text("not drawn in this test")
portions.OPERATIONS_PER_S = {"cpu": float(sys.argv[2])}
answered = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


class Counting(Reporter):
    def answered(self, questions):
        os.write(answered, b"." * questions)


def attempt(name):
    child = os.fork()
    if child == 0:
        tqdm.set_lock(RLock())  # which forked processes share, and a killed one may hold
        try:
            reporter = Counting() if name == "broken" else Reporter()
            run_study(prepare_study(load_study(sys.argv[1], ["name=" + name])), reporter)
        except BaseException as error:
            print("failed:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child


began = time.monotonic()
assert os.waitpid(attempt("whole"), 0)[1] == 0
length, rng, killed = time.monotonic() - began, random.Random(0), 0
while killed < 10:
    child = attempt("broken")
    time.sleep(rng.uniform(0, length / 4))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(attempt("broken"), 0)[1] == 0
"""


@pytest.mark.long
def test_killed_at_ten_random_moments_it_ends_as_if_never_touched(tmp_path, study_dict):
    rate, portion = 1.5e6, 6  # three shards, each in portions of at most six questions
    slower = {"m": 40, "max_new_tokens": 12, "shard_size": 20, "max_rows": 20}
    study = write_study(tmp_path, study_dict | {"sampling": slower})
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", ZYGOTE, str(study), str(rate), str(tmp_path / "answered")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1200,  # on a busy machine too
        check=False,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = (p.name for p in (tmp_path / "runs" / "whole").glob("*__*"))
    whole, broken = (Run.open(tmp_path / "runs" / which / name) for which in ("whole", "broken"))
    assert_same(whole, broken)
    assert sorted(p.name for p in broken.folder.rglob("*.*") if p.parent.name in ("samples", "activations")) == sorted(
        f"{key}.{kind}" for key in broken.shard_keys() for kind in ("parquet", "safetensors")
    )
    left = [path for path in broken.folder.parent.rglob(".*") if path.name != WRITING]
    assert not left, "claims and temporary files are gone"
    repeated = (tmp_path / "answered").stat().st_size - 48
    assert 0 <= repeated <= 10 * portion


def test_every_cell_is_sampled_with_all_threads(tmp_path, study_dict):
    class Watching(Reporter):
        def answered(self, questions):  # noqa: ARG002
            seen[self.cell].add(torch.get_num_threads())

        def sampling(self, cell, questions, done):  # noqa: ARG002
            self.cell = cell.style
            seen[cell.style] = set()

    seen: dict[str, set[int]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        two = study_dict | {"styles": ["concise", "sentence"]}
        few = ["datasets.0.n=3", "sampling.m=2", "sampling.max_new_tokens=1"]  # waiting threads keep their cores busy
        run_study(prepare_study(load_study(write_study(tmp_path, two | SAMPLED), few)), Watching())
    finally:
        torch.set_num_threads(before)
    assert seen == {"concise": {before + 1}, "sentence": {before + 1}}


def test_interrupted_it_keeps_what_was_finished(tmp_path, study_dict):
    class Impatient(Reporter):
        seen = 0

        def answered(self, questions):
            self.seen += questions
            if self.seen > 20:
                raise KeyboardInterrupt

    prepared = prepare_study(load_study(write_study(tmp_path, study_dict | SAMPLED)))
    with pytest.raises(KeyboardInterrupt):
        run_study(prepared, Impatient())
    (run,) = prepared.runs
    assert 0 < len(run.missing_shards()) < len(run.shard_keys())
    counter = Reporter()
    left = []
    counter.answered = left.append
    run_study(prepare_study(load_study(write_study(tmp_path, study_dict | SAMPLED))), counter)
    assert sum(left) < 48
    assert run.sampled


def test_a_folder_of_another_configuration_is_refused_and_untouched(tmp_path, copied):
    study, run = copied
    before = (run.folder / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"another configuration \(sampling\.m was 8, is now 9\)"):
        run_dict(tmp_path, study, "sampling.m=9")
    assert (run.folder / "config.yaml").read_text() == before
    run_dict(tmp_path, study, "sampling.max_rows=2")


def test_the_file_of_a_named_dataset_may_move_but_its_questions_may_not_change(tmp_path, study_dict, monkeypatch):
    data = tmp_path / "data" / "nq_open" / "NQ-open.dev.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("\n".join(json.dumps({"question": f"the red {i}", "answer": ["blue"]}) for i in range(8)))
    study = study_dict | SAMPLED | {"datasets": [{"kind": "nq-open", "path": str(data)}]}
    (run,) = run_dict(tmp_path, study)
    before = run.calibration()
    monkeypatch.setenv("SEMCAL_DATA", str((tmp_path / "data").rename(tmp_path / "moved")))
    monkeypatch.setattr("experiments.pipeline.run_study.sample_cell", None)  # nothing is sampled again
    (again,) = run_dict(tmp_path, study | {"datasets": [{"kind": "nq-open"}]})
    assert again.calibration() == before
    moved = tmp_path / "moved" / "nq_open" / data.name
    other = study | {"datasets": [{"kind": "nq-open", "split": "train"}]}
    with pytest.raises(UserError, match=r"dataset\.split was None, is now 'train'"):
        check_folder(load_study(write_study(tmp_path, other)).cells()[0])
    moved.write_text(moved.read_text().replace("the red 3", "the green 3"))
    with pytest.raises(UserError, match="was started with another question"):
        run_dict(tmp_path, study | {"datasets": [{"kind": "nq-open", "path": str(moved)}]})


def test_new_weights_under_the_old_path_are_refused(tmp_path, study_dict):
    path = save_checkpoint(tmp_path / "model", seed=1, scale=4.0)
    study = study_dict | SAMPLED | {"models": [{"path": str(path), "name": "m", "device": "cpu"}]}
    run_dict(tmp_path, study)
    save_checkpoint(tmp_path / "model", seed=2, scale=4.0)
    with pytest.raises(UserError, match="was started with different weights"):
        run_dict(tmp_path, study)


def test_analysis_alone_changes_without_the_model(tmp_path, copied, monkeypatch):
    study, run = copied
    first = run.calibration()
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("loaded a model again"))
    (again,) = run_dict(tmp_path, study, "calibration.null_draws=30")
    assert again.calibration()["smece"] == first["smece"]
    assert again.calibration()["null_mean"] != first["null_mean"]


def test_a_new_setting_deletes_nothing_and_results_are_replaced_by_new_results_only(tmp_path, copied, monkeypatch):
    study, run = copied
    before, probes = run.calibration(), (run.folder / "probes.parquet").stat().st_mtime_ns

    def failing(*_, **__):
        raise UserError("the judge is down")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.pipeline.run_study.score", failing)
        with pytest.raises(UserError, match="the judge is down"):
            run_dict(tmp_path, study, "calibration.bootstrap=30")
    assert run.calibration() == before
    (again,) = run_dict(tmp_path, study, "calibration.bootstrap=30")
    assert again.calibration()["smece_low"] != before["smece_low"]
    assert (run.folder / "probes.parquet").stat().st_mtime_ns == probes  # they do not depend on it
    run_dict(tmp_path, study, "calibration.bootstrap=30", "probes.permutations=3")
    assert (run.folder / "probes.parquet").stat().st_mtime_ns > probes


def test_semantics_share_one_set_of_samples(tmp_path, checkpoint):
    text = tmp_path / "text.txt"
    words = ["red", "blue", "green", "one", "two", "three", "four", "yes", "no", "the"]
    text.write_text(
        "\n\n".join(
            " ".join(words[(i * 7 + j * j) % 10] for j in range(6))
            + " . "
            + " ".join(words[i % 10 :])
            + " red blue the"
            for i in range(40)
        )
    )
    study = {
        "name": "words",
        "output": str(tmp_path / "runs"),
        "models": [{"path": str(checkpoint), "name": "m", "device": "cpu"}],
        "datasets": [{"kind": "continuation", "path": str(text), "prompt_words": [4], "answer_words": 3}],
        "styles": ["continuation"],
        "semantics": [{"kind": "kth-word", "k": 1}, {"kind": "kth-word", "k": 2}],
        "sampling": {"m": 6, "max_new_tokens": 6, "shard_size": 16},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
        "probes": {"enabled": False},
    }
    drawn = []

    class Counting(Reporter):
        def answered(self, questions):
            drawn.append(questions)

    prepared = prepare_study(load_study(write_study(tmp_path, study)))
    run_study(prepared, Counting())
    one, two = prepared.runs
    assert sum(drawn) == len(one.questions())
    pd.testing.assert_frame_equal(one.samples(), two.samples())
    assert one.calibration()["semantics"] == "kth-word(1)/2"
    assert not one.classes().equals(two.classes())


def test_long_prompts_are_counted_and_named_or_dropped(tmp_path, study_dict, questions_file):
    long = {"id": "long", "question": "red " * 300, "answers": ["red"]}
    questions_file.write_text(questions_file.read_text() + "\n" + json.dumps(long))
    study = (
        study_dict
        | SAMPLED
        | {
            "datasets": [{"kind": "jsonl", "path": str(questions_file)}],
            "prompting": {"shots": 0, "exemplars": 0},
        }
    )
    with pytest.raises(UserError, match=r"1 of 61 prompts \(long\) are longer than 252 tokens"):
        run_dict(tmp_path, study)
    (run,) = run_dict(tmp_path, study, "on_long_prompt=drop")
    assert "long" not in set(run.questions()["id"])
    assert len(run.questions()) == 60


def test_an_overflow_stops_the_run_naming_model_question_and_layer(tmp_path, study_dict):
    path = tmp_path / "overflow"
    model = LanguageModel.load(save_checkpoint(path), device="cpu")
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight.mul_(1e4)
        model.model.model.layers[1].mlp.down_proj.weight.mul_(1e38)
    model.model.save_pretrained(path)
    study = study_dict | {"models": [{"path": str(path), "name": "broken", "device": "cpu"}]}
    with pytest.raises(
        NonFiniteError, match=r"model broken: question 'q\d+': activations at blocks\.1\.hook_resid_post"
    ):
        run_dict(tmp_path, study)


def test_chat_models_read_their_template_with_one_bos(tmp_path, study_dict):
    path = save_checkpoint(tmp_path / "chat", scale=4.0)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} Question: {% for m in messages %}{{ m['content'] }}{% endfor %} Answer:"
    tokenizer.save_pretrained(path)
    chat = {"path": str(path), "name": "chat", "device": "cpu", "prompt": "chat"}
    (run,) = run_dict(tmp_path, study_dict | SAMPLED | {"models": [chat]})
    assert run.questions()["prompt"].str.contains("Answer with a single word").all()
    model = LanguageModel.load(path, device="cpu")
    ids = model.encode_rendered(run.questions()["prompt"][0])
    assert ids.count(0) == 1
    assert run.manifest()["sampling"]["stop"] == []


def test_a_model_without_a_chat_template_cannot_chat(tmp_path, study_dict, checkpoint):
    study = study_dict | {"models": [{"path": str(checkpoint), "name": "m", "device": "cpu", "prompt": "chat"}]}
    with pytest.raises(UserError, match="has no chat template; set its prompt to few-shot"):
        run_dict(tmp_path, study)


def test_wandb_offline_is_logged_once(tmp_path, copied):
    study, run = copied
    logged = list((run.folder / "wandb").glob("offline-run-*"))
    assert len(logged) == 1
    pictures = {path.stem for path in (run.folder / "figures").glob("*.png")}
    assert pictures
    assert len(list(logged[0].rglob("*.png"))) == len(pictures)
    run_dict(tmp_path, study | LOGGED)
    assert list((run.folder / "wandb").glob("offline-run-*")) == logged


def test_an_output_where_no_folder_can_be_made_is_one_line(tmp_path, study_dict):
    nowhere = tmp_path / "scratch"
    nowhere.symlink_to(tmp_path / "not-mounted")
    for output in (nowhere, Path("/proc/x")):
        file = write_study(tmp_path, study_dict | {"output": str(output)})
        with pytest.raises(UserError, match=r"^cannot (write|make the folder) .*; choose another output folder$"):
            prepare_study(load_study(file))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, study_dict, monkeypatch):
    import errno

    real, calls = os.replace, []

    def full(source, target):
        if str(target).endswith(".parquet") and "samples" in str(target):
            calls.append(target)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk full while writing"):
        run_dict(tmp_path, study_dict | SAMPLED)
    monkeypatch.setattr(os, "replace", real)
    (run,) = run_dict(tmp_path, study_dict | SAMPLED)
    assert run.sampled
    assert run.samples().groupby("question_id")["count"].sum().eq(8).all()


def test_a_corrected_gold_answer_is_taken_over_without_the_model(tmp_path, study_dict, questions_file, monkeypatch):
    study_dict = study_dict | SAMPLED
    (run,) = run_dict(tmp_path, study_dict)
    before = run.samples()
    lines = [json.loads(line) for line in questions_file.read_text().splitlines()]
    for line in lines:
        line["answers"] = ["yes"]
    questions_file.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("loaded a model again"))
    (again,) = run_dict(tmp_path, study_dict)
    assert set(again.classes().query("gold")["class"]) == {"yes"}
    pd.testing.assert_frame_equal(before, again.samples())
    lines[0]["question"] = lines[1]["question"] = lines[2]["question"] = "another one ?"
    questions_file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="was started with another question"):
        run_dict(tmp_path, study_dict)


def test_more_folds_than_groups_is_said_before_sampling_and_the_rest_is_measured(tmp_path, study_dict, caplog):
    few = study_dict | {"datasets": [study_dict["datasets"][0] | {"n": 2}]}
    prepare_study(load_study(write_study(tmp_path, few)))
    assert "2 groups of questions cannot be split into 3 folds" in caplog.text
    (run,) = run_dict(tmp_path, few)
    assert run.calibration()["n"] == 2
    assert run.probes().empty


@pytest.mark.long
@pytest.mark.pictures
def test_enumerated_answers_go_through_every_stage_and_agree_with_samples(tmp_path, study_dict):
    exact = study_dict | {"sampling": study_dict["sampling"] | {"exact": {"epsilon": 0.02}, "max_new_tokens": 3}}
    (run,) = run_dict(tmp_path, exact | {"name": "exact"}, drawn=True)
    (drawn,) = run_dict(tmp_path, study_dict | SAMPLED, "name=drawn", "sampling.m=400", "sampling.max_new_tokens=3")
    samples, classes, figures = run.samples(), run.classes(), run.calibration()
    assert samples["count"].isna().all()
    assert classes["count"].isna().all()
    assert (np.exp(samples["logprob"]).groupby(samples["question_id"]).sum() > 0.98).all()
    assert (1 - classes["seen_mass"]).between(0, 0.02).all()
    assert figures["m"] is None
    assert 0 <= figures["unexplored"] < 0.02
    assert figures["split_half_gap"] is None
    top = [r.class_table().by_count.plug_in for r in (run, drawn)]
    assert np.abs(top[0] - top[1]).mean() < 0.04  # sampling noise of a share of 400
    assert abs(figures["accuracy"] - drawn.calibration()["accuracy"]) < 0.1
    assert (run.probes()["ceiling"] == 1).all()
    assert "enumerated to 0.02" in (run.folder / "report.html").read_text()


def test_what_is_decided_after_each_token_is_a_table(finished):
    _, run = finished
    table = run.intermediate()
    first = table[table["token"] == 0].set_index("question_id")["expected_confidence"]
    classes = run.class_table()
    assert first.to_dict() == pytest.approx(dict(zip(classes.questions, classes.by_count.plug_in, strict=True)))
    last = table.groupby("question_id")["expected_confidence"].last()
    assert (last == 1).all()
    assert (table.groupby("question_id")["expected_confidence"].diff().dropna() > -1e-9).all()
    assert (run.folder / "figures" / "knowing.png").is_file()


def test_the_manifest_says_which_path_ran_and_what_it_cost(finished):
    _, run = finished
    (work,) = run.manifest()["sampling_work"]
    assert work["peak_process_bytes"] > 2**27  # torch alone is more
    assert work["path"] == "shared-prefix"
    assert work["prefix_tokens"] > 5
    assert 0 < work["rows_decoded"] < work["rows_plain"]
    assert "shared-prefix sampler" in (run.folder / "report.html").read_text()
