"""Runs kept without their texts: pages and verdicts come out the same, nothing that was asked or answered can be read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.config.study import load_study
from experiments.report import runs_without_texts
from experiments.report.results import results_page
from experiments.report.runs_without_texts import keep
from experiments.verdict.study_verdict import judge_study
from semcal import Run, UserError
from semcal.runs.without_texts import keep_without_texts
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.experiments.pipeline.test_cli import semcal
from tests.experiments.report.test_look_tables import add_looks

pytestmark = pytest.mark.long

KEPT = Path("docs/results/evidence")
OTHER = "docs/results/evidence/small/two__atlas-facts__concise__exact"
MODELS = [
    {"path": "atlas:base", "name": "one", "stage": "base", "lineage": "a"},
    {"path": "atlas:dpo", "name": "two", "stage": "dpo", "lineage": "a"},
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder with a small study of two models of the organism, run to the end."""
    folder = tmp_path_factory.mktemp("measured")
    probes = {"targets": ["classes"], "permutations": 0, "folds": 3, "baselines": []}
    small = {"models": MODELS, "datasets": [{"kind": "atlas", "family": "facts", "n": 48}], "probes": probes}
    study = study_of(folder, questions_in(folder), Path()) | small
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("experiments.pipeline.run_study.write_report", lambda *_: None)
        run_dict(folder, study)
    add_looks(first_run(folder))
    return folder


@pytest.fixture
def place(measured, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    return tmp_path


def kept() -> list[Path]:
    return keep("small", Path("runs"), KEPT)


def first_run(place: Path) -> Run:
    return Run(min(place.glob("runs/small/*/config.yaml")).parent)


def page() -> str:
    found = results_page("small", Path("runs"), Path("docs/results"))
    assert found is not None
    return found


def decided() -> str:
    return json.dumps(judge_study(load_study("study.yaml")).to_dict())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_page_and_verdict_are_the_same_from_what_was_kept(place):
    before = page(), decided()
    one, two = kept()
    assert (page(), decided()) == before  # run folders first
    assert "evidence" not in before[0]
    shutil.rmtree(place / "runs" / "small" / two.name)
    half = page(), decided()
    shutil.rmtree(place / "runs")
    whole = page(), decided()
    for (text, verdict), number in ((half, 1), (whole, 2)):
        where = f"2 runs; {number} from [docs/results/evidence/small](evidence/small), sampled "
        assert text.count(where) == 1
        assert text.replace(where, "2 runs, sampled ") == before[0]
        assert verdict == before[1]
    assert {"### Remedies", "### Gates"} <= set(whole[0].split("\n"))
    assert "KL gap in nats" in whole[0] or "Class distribution before the answer" in whole[0]
    assert Run.open(one).unchanged().same == len(contents(one)) - 1


def test_nothing_that_was_asked_or_answered_can_be_read(place):
    texts: set[str] = set()
    folders = kept()
    for run in [Run(place / "runs" / "small" / f.name) for f in folders]:
        questions, samples = run.questions(), run.samples()
        texts |= {*questions["text"], *questions["prompt"], *questions["written"], *samples["text"]}
        texts |= {form for forms in questions["answers"] for form in forms}
        texts |= {label for label in run.classes()["class"] if not label.startswith("(")}
    texts = {text.strip() for text in texts if len(text.strip()) > 2}
    assert len(texts) > 100
    for folder in folders:
        for name, content in contents(folder).items():
            read = pd.read_parquet(folder / name).to_json() if name.endswith(".parquet") else ""
            where = content.decode("latin-1").casefold() + read.casefold()
            assert not [text for text in texts if text.casefold() in where], name
            assert str(place) not in where


def test_kept_twice_it_is_the_same_to_the_byte_and_nothing_old_is_left(place):
    first, _ = kept()
    before = contents(KEPT)
    kept()
    assert contents(KEPT) == before
    (place / "runs" / "small" / first.name / "probes.parquet").unlink()
    kept()
    assert contents(KEPT).keys() == before.keys() - {f"small/{first.name}/probes.parquet"}
    assert "probes.parquet" not in json.loads((first / "digests.json").read_text())


def test_what_was_half_kept_is_not_read(place, monkeypatch):
    run = first_run(place)
    with monkeypatch.context() as patch:  # as kill -9 does: nothing is tidied
        patch.setattr("semcal.runs.files.shutil.rmtree", lambda *_, **__: None)
        patch.setattr("semcal.runs.run.Run.write_calibration", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep_without_texts(run, KEPT / "small")
    assert any("classes.parquet" in name for name in contents(KEPT))
    shutil.rmtree(run.folder)
    assert "1 runs, sampled" in page()
    first = kept()[0]
    assert {path.name for path in (KEPT / "small").iterdir()} == {first.name}


@pytest.mark.parametrize("lost", ["probe_losses.parquet", "digests.json"])
def test_a_file_that_was_lost_or_changed_is_named(place, lost):
    folder = kept()[0]
    shutil.rmtree(place / "runs")
    whole = (folder / lost).read_bytes()
    (folder / lost).unlink()
    for read in (page, decided):
        with pytest.raises(UserError, match=f"has lost its {lost}"):
            read()
    (folder / lost).write_bytes(whole)
    table = pd.read_parquet(folder / "classes.parquet")
    table.assign(gold=~table["gold"]).to_parquet(folder / "classes.parquet", index=False)
    with pytest.raises(UserError, match="was changed after semcal wrote it"):
        decided()


def test_what_was_kept_of_another_configuration_decides_nothing(place):
    kept()
    shutil.rmtree(place / "runs")
    with pytest.raises(UserError, match="another configuration"):
        judge_study(load_study("study.yaml", ["sampling.temperature=0.5"]))


@pytest.mark.pictures
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "command",
    [
        ("probe",),
        ("score",),
        ("score", "--semantics", "exact"),
        ("intervene",),
        ("tilt",),
        ("transfer", OTHER),
        ("report",),
    ],
)
def test_commands_that_need_more_end_with_one_line(monkeypatch, capsys, command):
    folder = kept()[0]
    before = contents(folder)
    name, *options = command
    code, _, err = semcal(monkeypatch, capsys, name, folder, *options)
    assert code == 2
    assert "Traceback" not in err
    assert re.search("holds what was measured, without|no activations|has no", " ".join(err.split())), err
    assert contents(folder) == before


def test_ids_that_are_texts_are_refused(place):
    run = first_run(place)
    table = run.questions()
    table.loc[0, "id"] = table["answers"][0][0]
    run.write_questions(table, run.aliases())
    with pytest.raises(UserError, match="give the dataset others that are no texts"):
        kept()
    assert not contents(KEPT)


def test_groups_that_begin_a_text_are_numbers_in_their_order(place):
    run = first_run(place)
    table, classes = run.questions(), run.class_table()
    named = dict(zip(table["id"], table["group"], strict=True))
    begun = {
        label: " ".join(text.split()[:3]) + f" {label}"
        for label, text in zip(table["group"], table["text"], strict=True)
    }
    table["text"] = [f"{begun[label]}, and so on" for label in table["group"]]
    table["group"] = table["group"].map(begun)
    run.write_questions(table, run.aliases())
    run.write_classes(replace(classes, groups=np.array([begun[label] for label in classes.groups])))
    new = Run(kept()[0])
    found = dict(zip(new.questions()["id"], new.questions()["group"], strict=True))
    assert len(set(found.values())) == len(set(named.values()))
    assert all(re.fullmatch(r"group-\d{6}", label) for label in found.values())
    order = sorted(begun, key=lambda label: begun[label])
    assert [found[i] for i in found] == [f"group-{order.index(named[i]):06d}" for i in found]
    assert new.class_table().groups.tolist() == [found[i] for i in new.class_table().questions]


@pytest.mark.usefixtures("place")
def test_a_wrong_name_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["runs_without_texts", "smal"])
    with pytest.raises(SystemExit) as stopped:
        runs_without_texts.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
