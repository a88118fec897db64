"""What W&B receives of a study, read from the records that it keeps on disk and, online, from a stand-in of its server."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from typer.testing import CliRunner

from experiments.cli import app
from experiments.config.run_folder import stored_cell
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.pipeline.signals import Stopped
from experiments.pipeline.tracking import capped_tables, session
from experiments.pipeline.tracking.capped_tables import sample_table
from experiments.pipeline.tracking.commands import training_tracked
from experiments.pipeline.tracking.session import sync_line
from experiments.pipeline.tracking.tracker import Tracker
from experiments.train.checkpoints import Progress
from semcal import Run
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study
from tests.experiments.pipeline.tracking.wandb_records import Logged
from tests.experiments.pipeline.tracking.wandb_stand_in import StandIn, wandb_stand_in

TRACKED: dict[str, Any] = {"tracking": {"wandb": "offline", "project": "tests"}}


def records(run: Run) -> list[Path]:
    wandb.teardown()  # until then, the end of a record may be on its way to the disk
    return sorted((run.folder / "wandb").glob("*run-*/run-*.wandb"))


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    """No test reaches a server but the stand-in, or reads the account of who runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def tracked(checkpoint, tmp_path_factory) -> tuple[dict[str, Any], Run]:
    """A finished study of one checkpoint along training, tracked offline."""
    folder = tmp_path_factory.mktemp("tracked")
    study = study_of(checkpoint, questions_in(folder), folder) | TRACKED
    model = study["models"][0] | {"stage": "base", "lineage": "llamas", "step": 40}
    (run,) = run_dict(folder, study | {"models": [model]}, drawn=True)
    return study | {"models": [model], "output": str(folder / "runs")}, run


@pytest.fixture(scope="module")
def logged(tracked) -> Logged:
    _, run = tracked
    (record,) = records(run)
    return Logged.read(record)


def test_a_run_says_what_it_is(tracked, logged):
    _, run = tracked
    said = logged.run
    assert (said.display_name, said.job_type, said.run_group, said.project) == (run.name, "sample", "small", "tests")
    assert said.run_id == run.manifest()["tracking_id"]
    assert {"llamas", "base", "colours", "concise"} <= set(said.tags)
    assert logged.exit_code == 0


def test_the_configuration_is_flat(tracked, logged):
    _, run = tracked
    config, manifest = logged.config, run.manifest()
    assert config["sampling.m"] == 8
    assert config["model.lineage"] == "llamas"
    assert config["B"] == run.calibration()["semantics"]
    assert config["checkpoint_step"] == 40
    assert config["seed"] == 0
    assert config["weights_hash"] == manifest["weights_hash"]
    assert config["prompt_hash"]
    own = {key: value for key, value in config.items() if key != "_wandb"}
    assert not [key for key, value in own.items() if isinstance(value, dict)]


def test_headline_figures_are_scalars_of_the_summary(tracked, logged):
    _, run = tracked
    c = run.calibration()
    assert logged.summary["smece"] == pytest.approx(c["smece"])
    assert logged.summary["smece_low"] == pytest.approx(c["smece_low"])
    assert logged.summary["smece_null"] == pytest.approx(c["null_mean"])
    assert logged.summary["smece_p"] == pytest.approx(c["p_value"])
    assert {
        "smece_high",
        "signed_gap_low",
        "accuracy_high",
        "kl_gap",
        "kl_gap_low",
        "kl_gap_high",
    } <= logged.summary.keys()


def test_progress_is_logged_while_it_samples(logged):
    lines = [line for line in logged.history if "sampling/questions" in line]
    assert lines[-1]["sampling/questions"] == 48
    assert all(line["sampling/questions_per_second"] > 0 for line in lines)
    assert logged.steps["sampling/*"] == "sampling/questions"
    (running,) = [line for line in logged.history if "running/accuracy" in line]
    assert running["running/questions"] == 48


def test_running_figures_of_all_questions_are_those_of_the_run(tracked, logged):
    _, run = tracked
    (running,) = [line for line in logged.history if "running/accuracy" in line]
    assert running["running/accuracy"] == pytest.approx(run.calibration()["accuracy"])
    assert running["running/confidence"] == pytest.approx(run.calibration()["confidence"])


def test_the_layer_curve_is_drawn_over_layers_and_a_checkpoint_over_its_step(tracked, logged):
    _, run = tracked
    assert logged.steps["probe/*"] == "layer"
    curve = [line for line in logged.history if "layer" in line]
    assert [line["layer"] for line in curve] == [0, 1, 2]
    key = "probe/classes/last_prompt_token/gap"
    stored = run.probes().query("target == 'classes' and rung == 'linear' and layer == 'blocks.2.hook_resid_post'")
    assert curve[-1][key] == pytest.approx(float(stored["gap"].iloc[0]))
    (step,) = [line for line in logged.history if "checkpoint_step" in line]
    assert step["checkpoint_step"] == 40
    assert step["trajectory/smece"] == pytest.approx(run.calibration()["smece"])


def test_tables_and_all_pictures_are_one_line(tracked, logged):
    _, run = tracked
    (line,) = [line for line in logged.history if any(key.startswith("figures/") for key in line)]
    shown = {key.split("/")[1] for key in line if key.startswith("figures/")}
    assert shown == {path.stem for path in (run.folder / "figures").glob("*.png")}
    assert line["tables/questions/nrows"] == 48
    assert line["tables/samples/nrows"] == len(run.samples())


def test_each_stage_is_made_from_the_one_before(logged):
    own = [(a.type, a.use_after_commit) for a in logged.artifacts if a.type != "run_table"]
    assert own == [
        ("model", True),
        ("questions", True),
        ("samples", False),
        ("samples", True),
        ("classes", False),
        ("classes", True),
        ("probes", False),
    ]
    samples = [a.digest for a in logged.artifacts if a.type == "samples"]
    assert len(set(samples)) == 1


def test_the_checkpoint_is_a_reference(tracked, logged):
    _, run = tracked
    (model,) = [a for a in logged.artifacts if a.type == "model"]
    assert any(entry.ref.startswith("file:") for entry in model.manifest.contents)
    assert run.manifest()["weights_hash"] in model.metadata


@pytest.fixture
def copied(tracked, tmp_path) -> tuple[dict[str, Any], Run]:
    """The same in a folder of its own, to be changed."""
    study, run = tracked
    shutil.copytree(study["output"], tmp_path / "runs", symlinks=True)
    return study | {"output": str(tmp_path / "runs")}, Run(tmp_path / "runs" / "small" / run.name)


def test_scoring_again_goes_on_with_the_same_run_and_makes_a_new_version(copied, tmp_path, logged):
    study, _ = copied
    (again,) = run_dict(tmp_path, study | {"calibration": study["calibration"] | {"bootstrap": 30}})
    first, second = records(again)
    assert first.parent.parent == second.parent.parent
    new = Logged.read(second)
    assert new.run.run_id == logged.run.run_id
    assert new.run.job_type == "score"
    assert min(line["_step"] for line in new.history) > max(line["_step"] for line in logged.history)

    def of(found: Logged, kind: str) -> tuple[str, str]:
        return next((a.name, a.digest) for a in found.artifacts if a.type == kind)

    assert of(new, "samples") == of(logged, "samples")
    assert of(new, "classes")[0] == of(logged, "classes")[0]
    assert of(new, "classes")[1] != of(logged, "classes")[1]
    assert sync_line([again.folder]) == shlex.join(["wandb", "sync", str(again.folder / "wandb")])
    run_dict(tmp_path, study | {"calibration": study["calibration"] | {"bootstrap": 30}})
    assert len(records(again)) == 2


def test_a_stopped_cell_is_closed_and_resumed_above_its_last_line(tmp_path, study_dict):
    class Stops(Reporter):
        def answered(self, questions: int) -> None:  # noqa: ARG002
            raise Stopped(15)

    path = write_study(tmp_path, study_dict | TRACKED | {"probes": {"enabled": False}})
    prepared = prepare_study(load_study(path))
    with pytest.raises(Stopped):
        run_study(prepared, Stops())
    (run,) = prepared.runs
    (record,) = records(run)
    assert Logged.read(record).exit_code == 143
    run_dict(tmp_path, study_dict | TRACKED | {"probes": {"enabled": False}})
    first, second = map(Logged.read, records(run))
    assert first.run.run_id == second.run.run_id
    assert min(line["_step"] for line in second.history) > max([0, *(line["_step"] for line in first.history)])


def test_of_two_processes_at_a_cell_one_feeds_its_run(copied):
    """Each has a tracker; what is in a cell is no matter to them."""
    _, run = copied
    run.change_manifest(lambda manifest: manifest | {"tracked": None})
    cell = stored_cell(run)
    before, (first, second) = records(run), (Tracker(Reporter()), Tracker(Reporter()))
    for tracker in (first, second):
        tracker.sampling(cell, 48, 0)
    for tracker in (second, first):
        tracker.answered(48)
    second.finished(cell)
    assert run.manifest()["tracked"] is None, "the other one still feeds the run, and comes by"
    first.left(cell, "analysed by process 1 on a")
    second.finished(cell)
    first.finished(cell)
    fed, logged = records(run)[len(before) :]
    fed, logged = Logged.read(fed), Logged.read(logged)
    assert fed.run.run_id == logged.run.run_id
    assert [line["sampling/questions"] for line in fed.history if "sampling/questions" in line] == [48]
    assert not [line for line in logged.history if "sampling/questions" in line]
    assert [line for line in logged.history if "tables/questions/nrows" in line]
    assert min(line["_step"] for line in logged.history) > max(line["_step"] for line in fed.history)


def test_several_cells_are_fed_at_once(copied, tmp_path):
    """As where workers of a cluster sample them by turns."""
    _, run = copied
    other = Run(shutil.copytree(run.folder, tmp_path / "runs" / "small" / "other"))
    shutil.rmtree(other.folder / "wandb")
    other.change_manifest(lambda manifest: manifest | {"tracking_id": None, "tracked": None})
    cells, tracker = (
        [stored_cell(run), stored_cell(other)],
        Tracker(Reporter(), clock=iter(range(0, 10_000, 3)).__next__),
    )
    before = records(run)
    for done in (0, 8, 16):
        for cell in cells:
            tracker.sampling(cell, 48, done)
            tracker.answered(8)
    for cell in cells:
        tracker.finished(cell)
    for record in (*records(run)[len(before) :], *records(other)):
        found = Logged.read(record)
        assert [line["sampling/questions"] for line in found.history if "sampling/questions" in line] == [8, 16, 24]
    assert len(records(run)) == len(before) + 1
    assert len(records(other)) == 1


def test_samples_beyond_the_limit_are_left_out_rarest_first(tracked, monkeypatch):
    _, run = tracked
    monkeypatch.setattr(capped_tables, "MOST_ROWS", 50)
    capped = sample_table(run)
    assert len(capped.rows) == 50
    assert capped.left_out == len(run.samples()) - 50
    assert set(capped.rows["question_id"]) == set(run.questions()["id"])


# ---- commands --------------------------------------------------------------------------------------------------------


def told_by(folder: Path, job_type: str) -> Logged:
    wandb.teardown()
    found = [Logged.read(record) for record in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
    return next(each for each in found if each.run.job_type == job_type)


def test_a_verdict_is_made_from_the_classes_and_probes_of_its_runs(copied, tmp_path, monkeypatch):
    study, run = copied
    monkeypatch.setattr("experiments.verdict.study_verdict.MOST_UNPARSED", 1.0)  # these answers are noise
    result = CliRunner().invoke(app, ["verdict", str(write_study(tmp_path, study))])
    assert result.exit_code == 0, result.exception
    verdict = told_by(run.folder.parent, "verdict")
    assert verdict.run.run_group == "small"
    assert verdict.summary["verdict/H1"]
    assert [(a.type, a.use_after_commit) for a in verdict.artifacts if a.type != "run_table"] == [
        ("classes", True),
        ("probes", True),
        ("verdict", False),
    ]
    (step,) = [line for line in verdict.history if "checkpoint_step" in line]
    assert step["trajectory/llamas/colours/concise/smece"] == pytest.approx(run.calibration()["smece"])
    assert shlex.join(["wandb", "sync", str(run.folder.parent / "wandb")]) in result.output.replace("\n", "")


def test_a_comparison_logs_its_table_and_of_one_pair_the_differences(copied):
    _, run = copied
    other = run.folder.with_name("other")
    shutil.copytree(run.folder, other, symlinks=True)
    result = CliRunner().invoke(app, ["compare", str(run.folder), str(other)])
    assert result.exit_code == 0, result.exception
    compared = told_by(run.folder.parent, "compare")
    assert compared.summary["difference/smece"] == 0
    assert compared.summary["difference/smece_p_holm"] == 1
    assert any("tables/comparison/nrows" in line for line in compared.history)


def test_training_is_logged_where_the_variable_of_wandb_says_so(tmp_path, monkeypatch):
    step = Progress(step=3, steps=10, loss=1.5, tokens=400, seconds=2.0, seconds_left=5.0)
    with training_tracked("atlas sft", tmp_path) as log:
        log(step)
    assert not (tmp_path / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    with training_tracked("atlas sft", tmp_path) as log:
        log(step)
    trained = told_by(tmp_path, "train")
    assert trained.history[0]["train/loss"] == 1.5
    assert trained.steps["train/*"] == "train/step"


# ---- online ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(session, "INIT_S", 5.0)
    monkeypatch.setattr(session, "FINISH_S", 4.0)
    with wandb_stand_in() as told:
        monkeypatch.setenv("WANDB_BASE_URL", told.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield told
        wandb.teardown()


@pytest.fixture
def again(tracked, tmp_path) -> Callable[[Reporter], Run]:
    """Logs a finished run anew, in a copy of its folder, online."""
    _, run = tracked
    copy = Run(tmp_path / run.name)
    shutil.copytree(run.folder, copy.folder, ignore=shutil.ignore_patterns("wandb"))
    manifest = {key: value for key, value in copy.manifest().items() if not key.startswith("track")}
    copy.write_manifest(manifest)

    def log(reporter: Reporter) -> Run:
        cell = stored_cell(copy)
        Tracker(reporter).finished(
            cell.model_copy(update={"tracking": cell.tracking.model_copy(update={"wandb": "online"})})
        )
        return copy

    return log


def test_online_the_server_has_everything_and_nothing_waits(server: StandIn, again):
    run = again(Reporter())
    name = run.manifest()["tracking_id"]
    assert server.runs[name]["jobType"] == "score"
    assert server.summaries[name]["smece"] == pytest.approx(run.calibration()["smece"])
    assert {artifact.partition("--")[0] for made, artifact in server.made if made == name} >= {
        "samples",
        "classes",
        "probes",
    }
    assert {artifact.partition("--")[0] for used, artifact in server.used if used == name} == {
        *("model", "questions", "samples", "classes")
    }
    assert all(len(digests) == 1 for digests in server.versions.values())
    assert sync_line([run.folder]) == ""


@pytest.mark.parametrize("failure", [("UpsertBucket", 404), ("CreateRunFiles", 500)], ids=["at once", "at its end"])
def test_a_server_that_fails_in_the_middle_costs_a_line(server: StandIn, again, caplog, failure):
    server.fails_after = failure  # the run is opened, and then everything fails
    with caplog.at_level(logging.WARNING):
        run = again(Reporter())
    assert "the study goes on" in caplog.text or "what was not sent" in caplog.text
    assert sync_line([run.folder]) == shlex.join(["wandb", "sync", "--include-online", str(run.folder / "wandb")])
    found = [Logged.read(record) for record in records(run)]
    assert any("smece" in each.summary for each in found)


def test_a_server_that_refuses_the_run_leaves_an_offline_record(server: StandIn, again, caplog):
    server.failing = 404  # a project that does not exist
    with caplog.at_level(logging.WARNING):
        run = again(Reporter())
    assert "logging offline" in caplog.text
    assert sync_line([run.folder]) == shlex.join(["wandb", "sync", str(run.folder / "wandb")])


@pytest.mark.long
def test_a_verdict_online_makes_one_workspace_of_the_study(server: StandIn, copied, tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    study, _ = copied
    monkeypatch.setattr("experiments.verdict.study_verdict.MOST_UNPARSED", 1.0)
    path = write_study(tmp_path, study | {"tracking": {"wandb": "online", "project": "tests"}})
    told = [CliRunner().invoke(app, ["verdict", str(path)]).output for _ in range(2)]
    assert all("workspace in W&B:" in output for output in told)
    assert list(server.views) == ["semcal small"]
    assert server.asked.count("UpsertView2") == 1
    assert "smece" in str(server.views["semcal small"])


def test_without_a_login_the_record_is_offline(again, caplog):
    with caplog.at_level(logging.WARNING):
        run = again(Reporter())
    (line,) = [record.message for record in caplog.records if record.message.startswith("W&B")]
    assert "not logged in" in line
    (record,) = records(run)
    assert record.parent.name.startswith("offline-run-")
