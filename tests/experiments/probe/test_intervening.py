"""`semcal intervene`: what is fitted on and what is changed, resumed and refused, and what the run folder keeps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.config.collapsing_functions import NumericConfig
from experiments.config.run_folder import stored_cell
from experiments.config.study import CalibrationConfig
from experiments.probe import intervene as intervening
from experiments.probe.intervene import intervene_run, remeasure
from experiments.probe.intervention_plan import Halves, Wanted
from experiments.score.score import score
from probes.plots.dose_response import dose_response
from semcal import Run, UserError
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.experiments.pipeline.test_cli import semcal

ABLATE = Wanted("ablate", ranks=(2,), random=2)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("captured")
    study = study_of(checkpoint, questions_in(folder), folder)
    captured = {"positions": ["last_prompt_token", "question_mean", "after_1_tokens"]}
    sampling = study["sampling"] | {"max_rows": 200, "shard_size": 48}
    (made,) = run_dict(folder, study | {"capture": captured, "sampling": sampling, "probes": {"enabled": False}})
    return made


@pytest.fixture
def run(finished, tmp_path) -> Run:
    """A copy of it, to be changed."""
    return Run(Path(shutil.copytree(finished.folder, tmp_path / finished.folder.name)))


def test_an_intervention_is_kept_in_the_run_with_its_controls(run):
    found = intervene_run(run, ABLATE, layers=["1", "blocks.2.hook_resid_post"], n=16)
    pd.testing.assert_frame_equal(found, run.interventions())
    assert list(found["kind"]) == ["none"] * 2 + ["ablate"] * 10
    same, other = found.iloc[0], found.iloc[1]
    assert (same["name"], same["tv"], same["d_smece"]) == ("same seed", 0, 0)  # the run is reproduced
    assert other["tv"] > 0.05
    assert set(found["n"]) == {16}
    made = found[found["kind"] == "ablate"]
    assert list(made["control"])[:5] == ["", "isotropic", "isotropic", "matched", "matched"]
    own = made[made["control"] == ""]
    assert (own["change"] > 0).all()
    assert own["p_tv_matched"].between(1 / 3, 1).all()
    assert own["tv_low"].notna().all()
    assert made.loc[made["control"] != "", "overlap"].between(0, 1).all()


def test_no_question_both_fits_and_is_changed(run):
    group = [f"g{i // 3}" for i in range(60)]
    for seed in range(5):
        halves = Halves.of(group, 12, seed)
        assert not {group[i] for i in halves.fit} & {group[i] for i in halves.changed}
        assert (len(halves.fit), len(halves.changed)) == (30, 12)
    asked = []
    real = intervening.intervene

    def watched(model, prompts, *rest, **more):
        asked.extend(p.key for p in prompts)
        return real(model, prompts, *rest, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intervening, "intervene", watched)
        intervene_run(run, ABLATE)
    questions = run.questions()
    fit = Halves.of([str(g) for g in questions["group"]], 300, 0).fit
    assert not set(asked) & set(questions["id"].iloc[fit])


@pytest.mark.parametrize(
    ("wanted", "position", "named"),
    [
        (Wanted("steer", sizes=(-2.0, 2.0), random=1), "last_prompt_token", "confidence"),
        (Wanted("patch", random=2), "last_prompt_token", "high into low"),
        (Wanted("ablate", ranks=(1, 2), random=1), "question_mean", "probe"),
    ],
)
def test_every_kind_and_position(run, wanted, position, named):
    found = intervene_run(run, wanted, position=position, layers=["1"])
    made = found[found["kind"] == wanted.kind]
    assert made["name"].iloc[0] == named
    assert (made["change"] > 0).all()
    if wanted.kind == "steer":
        own, controls = made[made["control"] == ""], made[made["control"] != ""]
        np.testing.assert_allclose(controls["change"], own["change"].iloc[0], rtol=1e-4)  # all of one norm
    figure = dose_response(found, title="a run")
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match="0 kinds"):
        dose_response(found[found["kind"] == "none"], title="nothing")


@pytest.mark.long
def test_finished_interventions_are_kept_and_not_sampled_again(run, monkeypatch):
    real, seen = intervening.effect, []

    def dies(*arguments, **more):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments, **more)

    with monkeypatch.context() as broken:
        broken.setattr(intervening, "effect", dies)
        with pytest.raises(KeyboardInterrupt):
            intervene_run(run, ABLATE)
    assert len(run.interventions()) == 4
    monkeypatch.setattr(intervening, "effect", lambda *a, **k: (seen.append(1), real(*a, **k))[1])
    broken_then_whole = intervene_run(run, ABLATE)
    assert len(seen) == 7
    shutil.rmtree(run.folder / "interventions")
    pd.testing.assert_frame_equal(intervene_run(run, ABLATE), broken_then_whole)
    monkeypatch.setattr(intervening, "Models", lambda: pytest.fail("nothing is left to do"))
    pd.testing.assert_frame_equal(intervene_run(run, ABLATE), broken_then_whole)
    answers = run.intervened(broken_then_whole["key"].iloc[2])
    assert list(answers) == ["question_id", "text", "count", "logprob", "finish"]
    assert (answers.groupby("question_id")["count"].sum() == 8).all()


@pytest.mark.parametrize(
    "changed",
    [{"calibration": CalibrationConfig(bootstrap=30, null_draws=25, detail_draws=10)}, {"semantics": NumericConfig()}],
    ids=["calibration", "semantics"],
)
def test_settings_of_the_analysis_delete_no_answers_and_measure_the_stored_ones_again(run, monkeypatch, changed):
    before = intervene_run(run, ABLATE)
    stored = {path: path.read_bytes() for path in (run.folder / "interventions").glob("*.parquet")}
    cell = stored_cell(run).model_copy(update=changed)
    run.write_config(cell.model_dump(mode="json"))
    score(cell, run)
    monkeypatch.setattr(intervening, "Models", lambda: pytest.fail("answers are stored, nothing is sampled"))
    after = intervene_run(run, ABLATE)
    assert list(after["key"]) == list(before["key"])
    assert set(after["fitted_to"]) == set(before["fitted_to"])
    assert (after["settings"] != before["settings"]).all()
    assert (after["change"] == before["change"]).all()
    for path, content in stored.items():
        assert path.name == "rows.parquet" or path.read_bytes() == content
    if "calibration" in changed:
        assert (after["tv"] == before["tv"]).all()
        assert (after["d_smece_low"] != before["d_smece_low"]).any()
    pd.testing.assert_frame_equal(remeasure(cell, run), after)


def test_interventions_of_an_earlier_version_are_refused_with_the_remedy(run):
    (run.folder / "interventions.parquet").touch()
    with pytest.raises(UserError, match=r"kept no answers; delete this file and run `semcal intervene /"):
        run.interventions()


def test_the_command(run, monkeypatch, capsys):
    code, out, err = semcal(monkeypatch, capsys, "intervene", run.folder, "--layer", 1, "--rank", 2, "--random", 1)
    assert code == 0, err
    for said in ("left alone, another seed", "ablate rank 2,", "1 × matched, overlap"):
        assert said in out, said
    (figure,) = (run.folder / "figures").glob("ablate-blocks.1*.png")
    assert str(figure) in out
    assert figure.with_suffix(".svg").is_file()
    page = (run.folder / "report.html").read_text()
    assert re.search(r"<h2[^>]*>Interventions", page)
    assert f'alt="{figure.stem}"' in page
    assert "1 × matched, overlap" in page


def test_refusals_in_a_line(run, monkeypatch, capsys):
    for arguments, said in (
        (["--layer", 9], "layer 9 was not captured in"),
        (["--layer", 9], "the nearest is 2; captured are blocks.0.hook_resid_pre"),
        (["--layer", "blocks.1.hook_resid_pst"], "did you mean 'blocks.1.hook_resid_post'"),
        (["--kind", "ablat"], "unknown kind 'ablat', did you mean 'ablate'"),
        (["--size", "-1"], "--size needs --kind steer"),
        (["--position", "after_1_tokens"], "after_1_tokens cannot be changed"),
        (["--position", "last_question_token"], "nothing captured at position 'last_question_token'"),
    ):
        code, _, err = semcal(monkeypatch, capsys, "intervene", run.folder, *arguments)
        assert code == 2
        assert said in err.replace("\n", ""), err
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    for change, said in (
        ({"sampling": config["sampling"] | {"exact": {}}}, "was enumerated, but interventions need samples"),
        ({"capture": config["capture"] | {"positions": []}}, "has no activations"),
        ({"model": config["model"] | {"path": "http://localhost:1/v1"}}, "is served, and a server's computation"),
    ):
        run.write_config(config | change)
        with pytest.raises(UserError, match=said):
            intervene_run(run, ABLATE)
    run.write_config(config)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    run.write_manifest(manifest | {"weights_hash": "sha256:0"})
    with pytest.raises(UserError, match="has different weights or a different tokenizer than"):
        intervene_run(run, ABLATE)
    (run.folder / "calibration.json").unlink()
    with pytest.raises(UserError, match="is not finished; `semcal run` its study first"):
        intervene_run(run, ABLATE)
