"""The pages of docs/results/: valid tables that say what the run folders say."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from experiments.config.study import Cell, Study, parse
from experiments.report.results import COMMANDS, main, results_page
from experiments.report.training_table import training_section
from experiments.train.step_log import add_to_log
from probes.evaluation.result import COLUMNS
from semcal import Run, UserError
from tests.experiments.conftest import run_dict


def test_a_page_has_valid_tables_with_the_figures_of_the_runs(tmp_path, study_dict):
    runs = run_dict(tmp_path, study_dict | {"styles": ["concise", "sentence"]})
    page = results_page("small", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    for run in runs:
        assert f"{run.calibration()['smece']:.3f} [" in page
    assert run_started(page) == runs[0].manifest()["started"]
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "quote the last" in page
    assert str(tmp_path) not in page


@pytest.mark.long
def test_every_rung_and_baseline_has_a_row_of_one_form_for_closed_and_open_classes(tmp_path, study_dict):
    runs = run_dict(tmp_path, study_dict | {"styles": ["concise", "sentence"]})
    opened = runs[1].probes()
    rows = [
        *(("bilinear", "blocks.0", 2.5), ("bilinear", "blocks.1", 2.25), ("bilinear", "blocks.2", 2.375)),
        *(("density", "blocks.1", 2.625), ("generative", "whole model", 1.875), ("baseline:marginal", "", 3.5)),
        *(("baseline:tfidf", "tf-idf and length", 3.25), ("baseline:candidate-only", "", 3.375)),
        *(("baseline:other-model", "blocks.0", 2.75), ("baseline:random-init", "blocks.2", 3.125)),
    ]
    frame = opened.iloc[: len(rows)].reindex(range(len(rows)))
    frame = frame.assign(target="classes", position="last_prompt_token", n=48, n_classes=417, pooled=0.0)
    for at, (rung, layer, gap) in enumerate(rows):
        frame.loc[at, ["rung", "layer"]] = [rung, layer]
        frame.loc[at, [c for c in COLUMNS if c.startswith("gap")]] = gap
        frame.loc[at, ["gap_low", "gap_high", "gap_at_least"]] = [gap - 0.125, gap + 0.125, np.nan]
        frame.loc[at, ["gap_top_low", "gap_top_high"]] = [gap - 0.25, gap + 0.25]
        frame.loc[at, ["gap_rest_low", "gap_rest_high"]] = np.nan  # as in runs of an earlier version
    runs[1].write_probes(frame)
    page = results_page("small", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    beside = {row["run"]: row for row in table_of(page, "KL gap in nats, by rung and baseline:")}
    assert beside["sentence"]["generative"] == "1.875 [1.750, 2.000]"
    assert (beside["concise"]["generative"], beside["sentence"]["linear"]) == ("—", "—")
    assert list(beside["concise"])[-1] == "baseline: marginal"
    assert [column.startswith("baseline") for column in beside["concise"]] == [False] * 5 + [True] * 5
    cells = table_of(page, "Every rung and baseline of every run:")
    assert len({(row["run"], row["rung"]) for row in cells}) == len(cells) == 11
    written = {(row["run"], row["rung"]): row for row in cells}
    closed = runs[0].probes().query("target == 'classes' and rung == 'linear'").iloc[-1]
    row = written["concise", "linear"]
    assert row["KL gap"].startswith(f"{closed['gap']:.3f} [{closed['gap_low']:.3f}, ")
    assert row["classes"] == str(int(closed["n_classes"]))
    assert float(row["seen mass"]) == pytest.approx(runs[0].calibration()["seen_mass"], abs=1e-3)
    assert ("concise", "baseline: marginal") in written
    of_open = [row for row in cells if row["run"] == "sentence"]
    assert [row["rung"] for row in of_open] == [
        *("bilinear", "density", "generative", "baseline: tfidf", "baseline: candidate-only", "baseline: other-model"),
        *("baseline: random-init", "baseline: marginal"),
    ]
    assert of_open[0] | {"run": ""} == {
        **{"run": "", "rung": "bilinear", "layer": "blocks.2", "KL gap": "2.375 [2.250, 2.500]"},
        **{"between": "0.000 to 2.375", "top class": "2.375 [2.125, 2.625]", "rest": "2.375"},
        "perfect, 95 %": "2.375",
        **{"best layer": "blocks.1", "its gap": "2.250", "n": "48", "classes": "417", "pooled": "0%"},
        "seen mass": f"{runs[1].calibration()['seen_mass']:.3f}",
    }
    assert of_open[2]["layer"] == "whole model"
    assert (of_open[1]["best layer"], of_open[1]["its gap"]) == ("—", "—")


def table_of(page: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading."""
    lines = page.split(heading)[1].strip().split("\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


@pytest.mark.long
def test_two_styles_of_one_model_stand_beside_each_other_by_kl_gap(monkeypatch, tmp_path, study_dict):
    monkeypatch.setattr("experiments.compare.by_gap.FEWEST", 2)
    run_dict(tmp_path, study_dict | {"styles": ["concise", "cot"]})
    text = results_page("small", tmp_path / "runs", tmp_path)
    assert text is not None
    _, _, table = text.partition("### The same questions in two styles")
    lines = [line for line in table.split("\n") if line.startswith("| llama")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[2] for row in rows] == ["1", "2", "3", "4"]
    assert sum(int(row[3]) for row in rows) == 48
    gaps = [[float(row[column]) for row in rows] for column in (4, 5)]
    assert any(own == sorted(own) for own in gaps)  # of the style whose gap is larger
    (told,) = [line for line in table.split("\n") if " in the first quarter to " in line]
    assert told.startswith(f"- {rows[0][0]}: the excess of c")


def test_two_styles_without_gaps_before_the_answer_have_a_page_without_that_table(monkeypatch, tmp_path, study_dict):
    run_dict(tmp_path, study_dict | {"styles": ["concise", "cot"], "probes": {"enabled": False}})
    elsewhere = {"rung": ["linear"], "layer": ["none"], "question_id": ["q"], "position": ["elsewhere"]}
    for losses in ({}, elsewhere | {"gap_nats": [0.1]}, elsewhere | {"position": ["last_prompt_token"]}):  # no; old
        monkeypatch.setattr(Run, "probe_losses", lambda _, found=losses: pd.DataFrame(found))
        text = results_page("small", tmp_path / "runs", tmp_path)
        assert text is not None
        assert "| cot | " in text
        assert "### The same questions in two styles" not in text


def cell_of(name: str, path: str, stage: str) -> Cell:
    model = {"path": path, "name": name, "stage": stage}
    study = {"name": "small", "models": [model], "datasets": [{"kind": "triviaqa"}], "styles": ["concise"]}
    return parse(Study, study, "study.yaml").cells()[0]


def test_a_page_says_how_the_models_of_a_study_were_trained(tmp_path):
    folder = tmp_path / "grpo"
    folder.mkdir()
    made = {"stage": "grpo", "trained_on": 1784, "dataset": "triviaqa:/some/where/TriviaQA.csv"}
    made |= {"steps": 20, "batch_size": 8}
    (folder / "training.json").write_text(json.dumps(made | {"learning_rate": 2e-4}))
    asked = [{"question": "a", "style": "concise", "chosen": c, "rejected": c} for c in ("red", None, None)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for step in range(1, 21):
        add_to_log(folder / "steps.jsonl", step, {"loss": 0.5, "reward": step / 20, "said": "no number"})
    run, base = Run(tmp_path / "run"), cell_of("base", "real:gemma", "base")
    grpo, again = (cell_of(name, str(folder), "grpo") for name in ("grpo", "grpo-few-shot"))
    lines = training_section([(base, run), (grpo, run), (again, run)])
    (row,) = [line for line in lines if line.startswith("| grpo")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["grpo", "grpo", "1784 questions of triviaqa"]
    assert cells[5:] == ["1 of 3", "0.500 → 0.500", "0.075 → 0.975"]
    assert not [line for line in lines if "few-shot" in line or "is missing here" in line]
    (folder / "training.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        training_section([(grpo, run)])


def test_a_training_that_is_not_known_is_said_to_be_missing(tmp_path):
    run = Run(tmp_path / "run")
    said = "\n".join(training_section([(cell_of("dpo", "runs/nowhere/dpo", "dpo"), run)]))
    assert "How these were trained is missing here: dpo." in said
    others = [("base", "real:gemma", "base"), ("tuned", "org/tuned", "sft"), ("organism", "atlas:dpo", "dpo")]
    assert training_section([(cell_of(*other), run) for other in others]) == []


@pytest.mark.long
def test_what_was_decided_in_variants_stands_side_by_side(tmp_path, study_dict):
    decided = {"small": ("holds", 0.004), "small-seed-1": ("fails", 0.9)}
    for name, (decision, p) in decided.items():
        run_dict(tmp_path, study_dict | {"name": name})
        verdict = {"hypotheses": [{"key": "H1", "claim": "Base models are calibrated", "decision": decision, "p": p}]}
        (tmp_path / "runs" / name / "verdict.json").write_text(json.dumps(verdict))
    page = results_page("small", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    assert "| H1 | Base models are calibrated | holds (p 0.004) | fails |" in page


@pytest.mark.long
def test_another_study_whose_name_begins_alike_is_no_variant(monkeypatch, tmp_path, study_dict):
    run_dict(tmp_path, study_dict)
    runs = tmp_path / "runs"
    for name in ("small-again", "small-other"):
        shutil.copytree(runs / "small", runs / name)
    monkeypatch.setitem(COMMANDS, "small-other", [])
    page = results_page("small", runs, tmp_path)
    assert page is not None
    assert re.findall("^## (.*)", page, flags=re.MULTILINE) == ["small", "small-again"]


def run_started(page: str) -> str:
    found = re.search(r"sampled (\d{4}-\d\d-\d\d)", page)
    assert found is not None
    return found[1]


def test_studies_without_runs_are_skipped_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["results", "--runs", str(tmp_path), "--into", str(tmp_path)])
    monkeypatch.setattr("experiments.report.results.results_page", lambda name, *_: "page" if name == "demo" else None)
    main()
    assert capsys.readouterr().out.count("no scored run below") == len(COMMANDS) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo.md"]
