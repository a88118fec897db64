"""`semcal transfer`: what is read from runs, what is refused; and a run's probe confidence with its costs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from transformers import LlamaConfig

from experiments.compare.transfer_runs import explanation, transfer_runs
from experiments.config.run_folder import stored_cell
from experiments.config.study import ProbesConfig
from experiments.pipeline.targets import scored_runs
from experiments.probe.confidence_of_probes import costs, probe_confidence
from experiments.probe.probed import Probed
from experiments.report.figures.figure_files import DPI
from probes.targets.open import open_entropies
from semcal import Run
from tests.conftest import CONFIGS, ROPE, save_checkpoint
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.experiments.pipeline.test_cli import semcal

LAST = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("transferring")


@pytest.fixture(scope="module")
def lean(checkpoint, folder):
    """Captured, but not probed: transfer and probe confidence fit probes of their own."""
    return study_of(checkpoint, questions_in(folder), folder) | {"probes": {"enabled": False, "folds": 3}}


@pytest.fixture(scope="module")
def styles(folder, lean):
    """Runs in two styles, not to be changed."""
    return run_dict(folder, lean | {"styles": ["concise", "sentence"]})


@pytest.fixture(scope="module")
def smaller(folder, lean):
    """Runs in these styles of a model with two narrower blocks."""
    config: dict[str, Any] = ROPE | {"hidden_size": 16, "num_hidden_layers": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "small", lambda: LlamaConfig(**config, num_key_value_heads=2))
        model = {"path": str(save_checkpoint(folder / "small-llama", "small")), "device": "cpu"}
    return run_dict(folder, lean | {"name": "other", "models": [model], "styles": ["concise", "sentence"]})


def test_two_styles_on_each_other(monkeypatch, capsys, tmp_path, styles):
    out = tmp_path / "out"
    folders = [run.folder for run in styles]
    code, said, err = semcal(monkeypatch, capsys, "transfer", *folders, "--out", out, "--width", "3")
    assert code == 0, err
    for word in ("trained on", "concise", "sentence", "activations add", "perfect", LAST, "cross-validated"):
        assert word in said, word
    table = pd.read_csv(out / "transfer.csv")
    assert list(zip(table["trained_on"], table["tested_on"], strict=True)) == [
        ("concise", "concise"),
        ("concise", "sentence"),
        ("sentence", "concise"),
        ("sentence", "sentence"),
    ]
    assert set(table["trained_layer"]) == set(table["tested_layer"]) == {LAST}
    assert (table["low"] <= table["gap"]).to_numpy().all()
    np.testing.assert_allclose(table["added"], table["alone"] - table["gap"])
    assert (table["n"] == 48).all()
    assert matplotlib.image.imread(out / "transfer.png").shape[1] == 3 * DPI
    assert (out / "transfer.svg").is_file()


def test_a_layer_and_a_target_can_be_named(styles):
    runs, _, _ = scored_runs([str(run.folder) for run in styles], [])
    first = transfer_runs(runs, layer="blocks.0.hook_resid_pre", target="b_confidence")
    assert first.layers == ["blocks.0.hook_resid_pre"] * 2
    assert {cell.covered for cell in first.cells} == {1.0}
    assert "of B-confidence" in explanation(first)
    assert [cell.gap for cell in first.cells] != [cell.gap for cell in transfer_runs(runs, target="b_confidence").cells]


def test_open_classes_are_scored_by_their_texts_over_the_classes_of_all_runs(styles):
    runs, _, _ = scored_runs([str(run.folder) for run in styles], [])
    probes = runs[0].cell.probes.model_copy(update={"target": "open"})
    first = replace(runs[0], cell=runs[0].cell.model_copy(update={"probes": probes}))
    found = transfer_runs([first, runs[1]])
    assert found.probe == "bilinear"
    assert "over the classes of all runs" in explanation(found)
    for cell in found.cells:
        own = open_entropies(runs[0 if cell.tested_on == "concise" else 1].table).point.mean()
        assert cell.alone + own < np.log(len({c for run in runs for row in run.table.classes for c in row}))
    assert transfer_runs(runs).probe == "linear"


def test_models_of_other_sizes_are_read_at_the_same_depth_through_a_map(styles, smaller):
    """Three blocks against two: the middle of the one is nearest the first of the other, the last is the last."""
    runs, _, _ = scored_runs([str(styles[0].folder), str(smaller[0].folder)], [])
    found = transfer_runs(runs)
    assert found.layers == [LAST, "blocks.1.hook_resid_post"]
    assert transfer_runs(runs, layer="blocks.0.hook_resid_pre").layers == ["blocks.0.hook_resid_pre"] * 2
    own, across, back, _ = found.cells
    assert (own.shared, across.shared, back.shared) == (0, 48, 48)
    assert np.isfinite([across.gap, across.mapped, back.gap, back.mapped]).all()
    said = explanation(found)
    for words in ("the same relative depth", "48 questions", "reduced-rank ridge regression", "held out"):
        assert words in said, words


def test_what_cannot_be_tried_is_refused_in_one_line(monkeypatch, capsys, tmp_path, lean, styles, smaller):
    def refused(*arguments) -> str:
        code, _, err = semcal(monkeypatch, capsys, "transfer", *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert "Traceback" not in err
        return err.strip().splitlines()[-1]

    one, two = (run.folder for run in styles)
    assert "needs two scored runs, found 1" in refused(one)
    assert f"did you mean {LAST!r}" in refused(one, two, "--layer", "blocks.2.resid_post")
    assert "did you mean 'classes'" in refused(one, two, "--target", "clases")
    (blind,) = run_dict(
        tmp_path, lean | {"name": "blind", "output": str(tmp_path / "runs"), "capture": {"positions": []}}
    )
    assert f"{blind.folder}: no activations in shard" in refused(one, blind.folder)
    small = smaller[1]
    assert "no question was asked of both in one style" in refused(one, small.folder)
    runs = [one, two, small.folder]
    assert "some runs lack layer 'blocks.9.hook_resid_post'" in refused(*runs, "--layer", "blocks.9.hook_resid_post")


def test_probe_confidence_stands_beside_the_samples_with_what_each_costs(tmp_path, styles):
    run = Run(Path(shutil.copytree(styles[0].folder, tmp_path / "copy")))
    cell = stored_cell(run).model_copy(update={"probes": ProbesConfig(folds=3)})
    run.write_config(cell.model_dump(mode="json"))  # probes that a run does not ask for are not shown
    probe_confidence(Probed.of(cell, run, "last_prompt_token"), run)
    table = run.probe_confidence()
    samples, classes, scalar = table.itertuples()
    assert list(table["source"]) == ["samples", "class probe", "confidence probe"]
    assert samples.smece == run.calibration()["smece"]
    assert scalar.accuracy == pytest.approx(run.calibration()["accuracy"])
    assert 0 < classes.confidence <= 1
    assert table["prompt_tokens"].nunique() == 1
    rows = run.samples()
    assert samples.generated_tokens == pytest.approx(sum(rows["count"] * rows["token_ids"].map(len)) / 48)
    assert 0 < samples.rows_decoded <= samples.generated_tokens
    assert (classes.generated_tokens, classes.rows_decoded) == (0, 0)
    assert 0 < classes.seconds < samples.seconds


def test_the_cost_of_samples_taken_from_another_run_is_not_known(tmp_path, lean):
    bs = [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]
    first, second = run_dict(tmp_path, lean | {"name": "semantics", "semantics": bs})
    assert np.isfinite(costs(first)[0].seconds)
    sampling, probing = costs(second)
    assert np.isnan([sampling.seconds, sampling.rows_decoded, probing.seconds]).all()
    assert sampling.generated_tokens == costs(first)[0].generated_tokens
