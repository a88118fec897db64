# ruff: noqa: F811 (fixtures of another file)
"""Files of a run that were edited, swapped, cut or put back since they were written, so that every one of them could be
read: refused in one line, with a remedy that works. A process that was killed while it wrote is no such case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.report.checks_table import files_check
from semcal import Run, UserError
from semcal.runs import files
from semcal.runs.digests import DIGESTS
from semcal.runs.stored_activations import StoredActivations
from tests.experiments.pipeline.test_cli import semcal
from tests.hostile.test_analysis_keeps_results import finished, run_of, study  # noqa: F401
from tests.hostile.test_changed_folders import each

pytestmark = pytest.mark.long

Change = Callable[[Path], None]


def table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Change:
    def damage(run: Path) -> None:
        (path,) = run.glob(name)
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    return damage


def figures(name: str, change: Callable[[dict], dict]) -> Change:
    def damage(run: Path) -> None:
        (run / name).write_text(json.dumps(change(json.loads((run / name).read_text()))))

    return damage


def swapped(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda d: d.assign(**{column: d[column].to_numpy()[::-1]})


def other_gold(classes: pd.DataFrame) -> pd.DataFrame:
    return classes.assign(gold=~classes["gold"].astype(bool))


def half(name: str) -> Change:
    def damage(run: Path) -> None:
        (path,) = run.glob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def cooler(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sampling"]["temperature"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def activations(run: Run) -> StoredActivations:
    return run.activations("last_prompt_token")


# What is changed, and what reads it.
CASES: dict[str, tuple[Change, Callable[[Run], object]]] = {
    "activations of other questions": (each("last_prompt_token", lambda v: v[::-1]), activations),
    "activations that are scaled": (each("last_prompt_token", lambda v: v * 2), activations),
    "layers in another order": (each("last_prompt_token", lambda v: v[:, ::-1]), activations),
    "activations that are cut": (half("activations/*"), activations),
    "prompts of other questions": (table("prompts.parquet", lambda d: d.iloc[::-1]), activations),
    "answers of other questions": (table("samples/*", swapped("text")), Run.samples),
    "log-probabilities of other answers": (table("samples/*", swapped("logprob")), Run.samples),
    "samples that are cut": (half("samples/*"), Run.samples),
    "other gold answers": (table("questions.parquet", swapped("answers")), Run.questions),
    "other groups": (table("questions.parquet", swapped("group")), Run.questions),
    "other aliases": (figures("aliases.json", lambda a: a | {"pooled": {"red": "blue"}}), Run.aliases),
    "other gold classes": (table("classes.parquet", other_gold), Run.table),
    "classes that are cut": (half("classes.parquet"), Run.table),
    "other confidence of tokens": (table("intermediate.parquet", lambda d: d.iloc[1:]), Run.intermediate),
    "another smECE": (figures("calibration.json", lambda c: c | {"smece": 0.0}), Run.calibration),
    "another KL gap": (table("probes.parquet", lambda d: d.assign(kl_gap=0.0)), Run.probes),
    "losses of other questions": (table("probe_losses.parquet", swapped("probe_nats")), Run.probe_losses),
    "another answer of the probe": (
        table("probe_predictions.parquet", lambda d: d.assign(confidence=1.0)),
        Run.probe_predictions,
    ),
    "another temperature": (cooler, Run.config),
    "another dtype": (figures("manifest.json", lambda m: m | {"dtype": "float64"}), Run.manifest),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_was_changed_since_it_was_written_is_refused(study, case):
    damage, read = CASES[case]
    run = run_of(study)
    read(run)
    damage(run.folder)
    with pytest.raises(
        UserError, match=r"was changed after semcal wrote it; restore it, or (delete it|`semcal)"
    ) as said:
        read(run)
    assert "\n" not in str(said.value)


def test_what_no_other_check_would_have_found_was_read_before(study):
    """Rows that share their tokens may be swapped, and a class table may say anything."""
    run = run_of(study)
    before = activations(run).values
    (run.folder / DIGESTS).unlink()
    each("last_prompt_token", lambda v: v[::-1])(run.folder)
    table("classes.parquet", other_gold)(run.folder)
    assert np.array_equal(activations(run).values, before[::-1])
    assert not run.table().empty


def test_a_result_of_earlier_settings_that_is_put_back_is_refused(study):
    run = run_of(study)
    old = (run.folder / "classes.parquet").read_bytes()
    classes = run.classes()
    run.write_classes(run.class_table().select(np.arange(6)))
    assert len(run.classes()) < len(classes)
    (run.folder / "classes.parquet").write_bytes(old)
    with pytest.raises(UserError, match="changed after"):
        run.classes()


@pytest.mark.parametrize(
    ("case", "command"),
    [
        ("other gold classes", "score"),
        ("another smECE", "score"),
        ("another KL gap", "probe"),
        ("losses of other questions", "probe"),
    ],
)
def test_the_command_that_the_line_names_makes_it_again(study, monkeypatch, capsys, case, command):
    run, (damage, read) = run_of(study), CASES[case]
    was = run.calibration(), run.class_table().sampled_counts.tolist(), run.probe_losses()
    damage(run.folder)
    with pytest.raises(UserError, match=f"`semcal {command} "):
        read(run)
    code, _, err = semcal(monkeypatch, capsys, "report", run.folder)
    assert "Traceback" not in err
    if code == 0:  # the page does not show it, and says so
        assert "CHECK FAILED: files as they were written" in (run.folder / "report.html").read_text()
    else:
        assert f"`semcal {command} " in " ".join(err.split())
    code, _, err = semcal(monkeypatch, capsys, command, run.folder)
    assert code == 0, err
    now = run.calibration(), run.class_table().sampled_counts.tolist(), run.probe_losses()
    assert was[:2] == now[:2]
    pd.testing.assert_frame_equal(was[2], now[2])
    assert semcal(monkeypatch, capsys, "report", run.folder)[0] == 0


@pytest.mark.parametrize("case", ["activations of other questions", "answers of other questions"])
def test_a_shard_that_is_deleted_as_the_line_says_is_sampled_again(study, case):
    run = run_of(study)
    samples, values = run.samples(), activations(run).values
    damage, read = CASES[case]
    damage(run.folder)
    with pytest.raises(UserError, match="delete it, and `semcal run` its study makes it again") as said:
        read(run)
    path = next(p for p in run.folder.glob("*/0*") if str(p) in str(said.value))
    path.unlink()
    run_study(prepare_study(load_study(study)), Reporter())
    pd.testing.assert_frame_equal(run.samples(), samples)
    np.testing.assert_allclose(activations(run).values, values, atol=1e-5)


def test_one_bad_run_does_not_keep_others_from_being_listed(study, monkeypatch, capsys):
    run = run_of(study)
    shutil.copytree(run.folder, run.folder.with_name("second__colours"))
    CASES["another smECE"][0](run.folder)
    code, out, _ = semcal(monkeypatch, capsys, "ls", run.folder.parent)
    assert code == 0
    assert "unreadable" in out
    assert "finished" in out
    assert "was changed after semcal wrote it" in " ".join(out.split())


# ---- processes that are killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["a new file", "a file that is replaced"])
def test_a_process_killed_between_digest_and_file_leaves_what_was_there(tmp_path, monkeypatch, there):
    run = Run(tmp_path)
    if there:
        run.write_calibration({"smece": 0.1})
    with monkeypatch.context() as killed:
        real = files.os.replace

        def dies(source: Path, target: Path) -> None:
            if Path(target).name == "calibration.json":
                raise KeyboardInterrupt
            real(source, target)

        killed.setattr(files.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            run.write_calibration({"smece": 0.2})
    assert run.calibration() == ({"smece": 0.1} if there else {})
    run.write_calibration({"smece": 0.3})
    assert run.calibration() == {"smece": 0.3}
    assert len(json.loads((tmp_path / DIGESTS).read_text())["calibration.json"]) == 1


def test_a_process_killed_after_the_file_leaves_a_whole_run(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.write_calibration({"smece": 0.1})
    with monkeypatch.context() as killed:
        real = files.os.replace

        def dies(source: Path, target: Path) -> None:
            real(source, target)
            if Path(target).name == "calibration.json":
                raise KeyboardInterrupt

        killed.setattr(files.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            run.write_calibration({"smece": 0.2})
    assert run.calibration() == {"smece": 0.2}


def test_results_that_are_being_replaced_are_read_as_old_or_new(tmp_path, monkeypatch):
    """A reader that looked up a digest just before another process replaced the set looks it up again."""
    run = Run(tmp_path)
    with run.replacing() as new:
        new.write_calibration({"smece": 0.1})
    real, replaced = Run._path, []

    def meanwhile(self: Run, *parts: str) -> Path:
        if parts == ("calibration.json",) and self == run and not replaced:
            replaced.append(True)
            with Run(tmp_path).replacing() as new:
                new.write_calibration({"smece": 0.2})
        return real(self, *parts)

    known = run.calibration()
    monkeypatch.setattr(Run, "_path", meanwhile)
    assert known == {"smece": 0.1}
    assert run.calibration() == {"smece": 0.2}
    assert replaced


# ---- what the page says --------------------------------------------------------------------------------------------


def test_the_page_says_that_files_are_as_they_were_written_or_which_are_not(study):
    run = run_of(study)
    assert files_check(run.unchanged()).outcome == "passed"
    assert run.unchanged().same >= 10
    CASES["activations of other questions"][0](run.folder)
    found = files_check(run.unchanged())
    assert found.outcome == "failed"
    assert "activations/00000" in found.why


def test_the_page_of_an_early_run_says_that_its_files_could_not_be_compared(study, monkeypatch, capsys):
    run = run_of(study)
    (run.folder / DIGESTS).unlink()
    assert semcal(monkeypatch, capsys, "report", run.folder)[0] == 0
    page = (run.folder / "report.html").read_text()
    assert "files as they were written" in page
    assert "kept no digests" in page
    run.write_calibration(run.calibration())
    found = files_check(run.unchanged())
    assert found.outcome == "passed"
    assert "of 1; no digest of" in found.why
