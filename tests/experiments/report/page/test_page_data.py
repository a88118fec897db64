"""What a page holds: every question as the run has it, within its size, in a form that cannot leave its element."""

from __future__ import annotations

import json
import re
import shutil

import pandas as pd
import pytest
import yaml

from experiments.config.run_folder import stored_cell
from experiments.config.study import Cell
from experiments.report.page.embedded import as_json, cut, data_element, digits
from experiments.report.page.run_data import GOLD, run_data
from experiments.report.page.stored_verdict import stored_verdict
from experiments.report.page.study_data import sets_of, study_data
from semcal import Run
from tests.experiments.conftest import write_study
from tests.experiments.pipeline.test_cli import semcal

pytestmark = pytest.mark.long


@pytest.mark.parametrize("text", ["</script>", "<!--", "a\u202eb", "\0", "\u2028", "é 漢 🙂", "\ud83d", "a&b"])
def test_text_survives_as_json_and_cannot_leave_its_element(text):
    held = as_json({"text": text})
    assert json.loads(held) == {"text": text}
    assert not set("<>&\u202e\0\u2028\ud83d") & set(held)
    assert data_element([text]).count("<") == 2


def test_long_texts_and_numbers_are_short():
    assert cut("x" * 3000) == {"cut": "x" * 2000, "length": 3000}
    assert [digits(x) for x in (0.123456, 50.0, float("nan"), None, 1 / 3)] == [0.123, 50, None, None, 0.333]


def test_a_page_holds_every_question_as_the_run_has_it(run):
    data = run_data(stored_cell(run), run)
    table, questions = run.table(), run.questions()
    assert data["questions"]["id"] == list(questions["id"])
    for name, column in (("confidence", "confidence"), ("by_mass", "confidence_by_mass"), ("correct", "correct")):
        assert data["questions"][name] == pytest.approx(list(table[column]), rel=0.01)
    own = run.classes().assign(lost=lambda c: c["count"].where(c["unparsed"], 0)).groupby("question_id")["lost"].sum()
    assert data["questions"]["unparsed"] == pytest.approx([own[name] / 8 for name in questions["id"]], abs=0.001)
    assert sum(data["questions"]["unparsed"]) > 0
    paragraphs = data["paragraphs"]
    prompts = [data["prefix"] + "\n\n".join(paragraphs[at] for at in parts) for parts in data["prompts"]]
    assert prompts == list(questions["prompt"])
    assert [sum(count for _, count, *_ in answers) for answers in data["samples"]] == [8] * len(questions)
    classes = run.classes()
    for question, asked, share in zip(
        table["question_id"], table["probe_class"], data["questions"]["probe_sampled"], strict=True
    ):
        of = classes.loc[(classes["question_id"] == question) & (classes["class"] == asked), "count"]
        assert share == pytest.approx(of.sum() / 8, abs=0.001)


def test_what_all_prompts_share_is_stored_once(run):
    data = run_data(stored_cell(run), run)
    stored = len(data["prefix"]) + sum(len(part) if isinstance(part, str) else 0 for part in data["paragraphs"])
    assert stored < 0.7 * run.questions()["prompt"].str.len().sum()


def test_answers_that_do_not_fit_are_left_out_rarest_first_and_counted(run):
    cell = stored_cell(run)
    everything = run_data(cell, run)
    assert everything["samples_left_out"] == 0
    size = len(as_json(everything["samples"]))
    rest = len(as_json(everything)) - size
    some = run_data(cell, run, taken=5_000_000 - rest - size // 2)
    assert some["classes"] == everything["classes"]
    assert some["samples_left_out"] == sum(map(len, everything["samples"])) - sum(map(len, some["samples"]))
    for fewer, all_of_it in zip(some["samples"], everything["samples"], strict=True):
        assert 1 <= len(fewer) <= some["samples_kept"]
        assert fewer == all_of_it[: len(fewer)]
        assert [row[1] for row in all_of_it] == sorted((row[1] for row in all_of_it), reverse=True)
    assert all(run_data(cell, run, taken=10**9)["samples"])  # the most frequent one stays


def test_classes_that_do_not_fit_become_one_entry_with_their_counts_and_masses(run):
    cell = stored_cell(run)
    everything, least = run_data(cell, run)["classes"], run_data(cell, run, taken=10**9)["classes"]
    assert any(len(of) > 2 for of in everything)
    for fewer, all_of_it in zip(least, everything, strict=True):
        assert len(fewer) == min(2, len(all_of_it))
        assert fewer[0] == all_of_it[0]
        assert sum(entry[1] for entry in fewer) == sum(entry[1] for entry in all_of_it)
        assert sum(entry[2] for entry in fewer) == pytest.approx(sum(entry[2] for entry in all_of_it), rel=0.01)
        assert any(entry[3] & GOLD for entry in fewer if len(entry) > 3) == any(
            entry[3] & GOLD for entry in all_of_it if len(entry) > 3
        )


def test_a_run_without_probes_lacks_their_columns(run):
    run.write_config(run.config() | {"probes": run.config()["probes"] | {"enabled": False}})
    data = run_data(stored_cell(run), run)
    assert not {"probe_answer", "probe_confidence", "probe_sampled"} & set(data["questions"])
    assert "layers" not in data


def test_answers_on_the_way_are_read(run):
    whole = run.samples()
    key = run.shard_keys()[-1]
    path = run.folder / "samples" / f"{key}.parquet"
    rows = [row | {"token_ids": list(map(int, row["token_ids"]))} for row in pd.read_parquet(path).to_dict("records")]
    path.unlink()
    first = rows[0]["question_id"]
    with run.open_partial(key) as partial:
        partial.append({first: [row for row in rows if row["question_id"] == first]})
    so_far = run.samples_so_far()
    assert so_far["question_id"].nunique() == 48 - 8 + 1
    assert so_far["count"].sum() == whole["count"].sum() - 7 * 8


def cell_of(model: str, style: str = "concise", step: int | None = None) -> Cell:
    return Cell.model_validate(
        {"study": "s", "folder": "f", "style": style, "dataset": {"kind": "atlas", "family": "facts"}}
        | {"model": {"path": "atlas:base", "name": model, "step": step}, "semantics": {"kind": "exact"}}
        | {
            "seed": 0,
            "on_long_prompt": "refuse",
            "sampling": {},
            "prompting": {},
            "capture": {},
            "calibration": {},
            "probes": {},
            "tracking": {},
        }
    )


def test_runs_that_differ_in_one_thing_are_compared():
    cells = [cell_of("base"), cell_of("tuned"), cell_of("base", "cot"), cell_of("tuned", "cot")]
    found = {(one["varied"], one["name"]): (one["runs"], one["called"]) for one in sets_of(cells)}
    assert found == {
        ("models", "atlas-facts · concise"): ([0, 1], ["base", "tuned"]),
        ("models", "atlas-facts · cot"): ([2, 3], ["base", "tuned"]),
        ("styles", "atlas-facts · base"): ([0, 2], ["concise", "cot"]),
        ("styles", "atlas-facts · tuned"): ([1, 3], ["concise", "cot"]),
    }
    (along,) = sets_of([cell_of("late", step=20), cell_of("early", step=3)])
    assert (along["varied"], along["called"]) == ("checkpoints", ["early", "late"])
    assert sets_of(cells[:1]) == []


def test_a_study_holds_answers_of_each_run_to_the_same_questions(study):
    runs = [Run.open(folder) for folder in sorted(study.glob("*__*"))]
    data = study_data([(stored_cell(run), run) for run in runs], ["a", "b"])
    for held, run in zip(data["runs"], runs, strict=True):
        assert held["confidence"] == pytest.approx(list(run.table()["confidence"]), rel=0.01)
    assert data["questions"]["asked"]["id"] == list(runs[0].questions()["id"])


def test_report_of_half_done_runs_draws_pages_and_lists_them(monkeypatch, capsys, study):
    half, done = sorted(study.glob("*__*"))
    for name in ("calibration.json", "report.html"):
        (half / name).unlink()
    monkeypatch.setattr("experiments.report.pages.run_figures", lambda *_: {})
    code, _, err = semcal(monkeypatch, capsys, "report", half)
    assert code == 0, err
    assert "Not finished: 48 of 48 questions are answered, none is scored" in (half / "report.html").read_text()
    code, _, err = semcal(monkeypatch, capsys, "report", study)
    assert code == 0, err
    text = (study / "report.html").read_text()
    assert "1 run:" in text
    assert re.search(rf'<li><a href="{half.name}/report.html">[^<]*</a>: 48 of 48 questions', text)
    (done / "calibration.json").unlink()
    code, _, err = semcal(monkeypatch, capsys, "report", study)
    assert code == 0, err
    assert "No run is scored yet" in (study / "report.html").read_text()


def test_verdicts_are_on_the_page_with_their_evidence(monkeypatch, capsys, drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "runs" / "small")
    asked = yaml.safe_load((drawn.parent.parent / "study.yaml").read_text())
    study = write_study(tmp_path, asked | {"output": str(tmp_path / "runs")})
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    monkeypatch.setattr("experiments.verdict.study_verdict.check_parsed", lambda _: None)
    code, _, err = semcal(monkeypatch, capsys, "verdict", study)
    assert code == 0, err
    stored = stored_verdict(folder)
    assert stored is not None
    text = (folder / "report.html").read_text()
    for verdict in stored.verdicts:
        assert f'id="verdict-{verdict.finding.key.replace(" ", "-")}"' in text
        assert f'<span class="decision {verdict.decision}">{verdict.decision}</span>' in text
    assert "Scored since these verdicts" not in text
    (tmp_path / "verdict.json").write_text('{"hypotheses": [{"key": "H1"}]}')  # of another version
    assert stored_verdict(tmp_path) is None
    assert stored_verdict(tmp_path / "nowhere") is None
