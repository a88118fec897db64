"""Pages and figures: of a run with several positions and rungs, of a study, and drawn again by `semcal report`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from experiments.compare.probe_rows import last_layer
from experiments.config.run_folder import stored_cell
from experiments.config.study import load_study
from experiments.report.figures.run_figures import run_figures
from experiments.report.figures.study_figures import models, predictability
from experiments.report.page.html_page import gallery, html_table, templates, without_constants
from experiments.report.summary_table import headline, remarks, summary_rows, text_table
from experiments.verdict.study_verdict import judge_study
from semcal import Run
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study
from tests.experiments.pipeline.test_cli import semcal


def shown(page: Path) -> list[str]:
    """The figures of a page, by their alternative text."""
    text = page.read_text(encoding="utf-8")
    assert 'src="http' not in text  # nothing is fetched
    return re.findall(r'<img alt="([^"]+)"', text)


@pytest.mark.long
@pytest.mark.pictures
def test_positions_along_the_answer_and_several_rungs_have_their_figures(tmp_path, study_dict):
    capture = {
        "positions": ["last_prompt_token", "question_mean", "chain_50", "chain_100", "after_1_tokens", "before_answer"]
    }
    probes = {"folds": 3, "permutations": 0, "targets": ["classes"], "rungs": ["linear", "ridge-logit"]}
    (run,) = run_dict(tmp_path, study_dict | {"capture": capture, "probes": probes}, drawn=True)
    names = shown(run.folder / "report.html")
    for name in ("layers", "layers-positions", "rungs", "commitment", "commitment-tokens"):
        assert name in names, name
        for suffix in ("png", "svg"):
            assert (run.folder / "figures" / f"{name}.{suffix}").stat().st_size > 1000
    page = (run.folder / "report.html").read_text()
    assert "Rungs of the ladder and baselines at one layer" in page
    assert "Interventions" not in page


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """The folder of a finished study of two runs, to be copied."""
    folder = tmp_path_factory.mktemp("grid")
    study = study_of(checkpoint, questions_in(folder), folder)
    run_dict(folder, study | {"styles": ["concise", "sentence"]}, drawn=True)
    return folder


@pytest.fixture
def grid(finished, tmp_path) -> list[Run]:
    """A copy of it."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    study = yaml.safe_load((finished / "study.yaml").read_text())
    write_study(tmp_path, study | {"output": str(tmp_path / "runs")})
    return [Run.open(folder) for folder in sorted((tmp_path / "runs" / "small").glob("*__*"))]


@pytest.mark.long
def test_one_position_and_one_rung_have_no_figures_over_them(grid):
    names = shown(grid[0].folder / "report.html")
    assert "layers" in names
    assert not {"layers-positions", "rungs", "commitment"} & set(names)


def test_a_study_has_a_page_with_a_table_a_figure_and_a_link_to_each_run(tmp_path, grid):
    folder = tmp_path / "runs" / "small"
    for name in ("report.html", "figures/predictability.png", "figures/predictability.svg"):
        assert (folder / name).is_file(), name
    assert shown(folder / "report.html") == ["predictability"] + ["reliability", "layers"] * 2
    text = (folder / "report.html").read_text()
    links = re.findall(r'<a href="([^#"][^"]*)">', text)
    assert {(folder / link).resolve() for link in links} == {run.folder.resolve() / "report.html" for run in grid}
    for run in grid:
        smece = run.calibration()["smece"]
        assert f"{smece:.3f} [" in text


def test_the_figures_over_runs_show_what_the_runs_say(grid):
    rows = [(stored_cell(run), run) for run in grid]
    figure = predictability(rows)
    assert figure is not None
    for mark, run in zip(figure.axes[0].texts, grid, strict=True):
        last = last_layer(run.probes(), "classes")
        assert last is not None
        assert mark.xy == pytest.approx((last["gap"], run.calibration()["excess"]))
    assert predictability(rows[:1]) is None

    assert models(rows) is None  # of one model
    tuned = [
        (cell.model_copy(update={"model": cell.model.model_copy(update={"name": "b"})}), run) for cell, run in rows
    ]
    side_by_side = models(rows + tuned)
    assert side_by_side is not None
    for axes, figure in zip(side_by_side.axes, ("accuracy", "signed_gap", "excess"), strict=True):
        for run, bars in zip(grid, axes.containers, strict=True):
            found = run.calibration()
            if figure == "signed_gap":
                found = {its["estimator"]: its for its in found["finite_m"]}["by mass"]
            assert bars.lines[0].get_xdata().tolist() == pytest.approx([found[figure]] * 2)


def test_the_summary_keeps_names_and_digits_in_a_narrow_window(grid):
    console = Console(width=80, record=True)
    console.print(text_table(*summary_rows([(stored_cell(run), run) for run in grid])))
    text = re.sub(r"\s+", " ", console.export_text())
    for word in (
        "run",
        "concise",
        "sentence",
        f"{headline(grid[0])['smece']:.3f}",
        f"{headline(grid[1])['p_value']:.3f}",
    ):
        assert word in text
    assert "…" not in text.replace("[…]", "")


def test_report_draws_again_what_the_folders_hold(monkeypatch, capsys, tmp_path, grid):
    folder, study = tmp_path / "runs" / "small", tmp_path / "study.yaml"
    pages = [folder / "report.html", *(run.folder / "report.html" for run in grid)]
    for target in (study, folder):
        for page in pages:
            page.unlink()
        code, out, err = semcal(monkeypatch, capsys, "report", target)
        assert code == 0, err
        assert str(folder / "report.html") in out
        assert all(page.is_file() for page in pages)
    for page in pages:
        page.unlink()
    code, out, err = semcal(monkeypatch, capsys, "report", grid[0].folder)
    assert code == 0, err
    assert [page.is_file() for page in pages] == [False, True, False]
    (grid[1].folder / "calibration.json").unlink()
    code, out, err = semcal(monkeypatch, capsys, "report", study)
    assert code == 0, err
    assert f"left out: {grid[1].folder}: not scored" in out
    assert "Fewer than two runs" in (folder / "report.html").read_text()


@pytest.mark.long
@pytest.mark.usefixtures("grid")
def test_a_study_scored_again_has_its_page_drawn_again(monkeypatch, capsys, tmp_path):
    page = tmp_path / "runs" / "small" / "report.html"
    page.write_text("old")
    code, _, err = semcal(monkeypatch, capsys, "score", tmp_path / "study.yaml")
    assert code == 0, err
    assert "small" in page.read_text()


def test_what_cannot_be_reported_is_one_line(monkeypatch, capsys, tmp_path, study_dict):
    study = write_study(tmp_path, study_dict)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([study], "none of its runs has been scored; `semcal run` its study first"),
        ([tmp_path / "empty"], "no run at or below"),
        ([tmp_path / "nowhere.yaml"], "no file"),
        ([tmp_path / "empty", "--set", "seed=1"], "--set needs a study file"),
    ):
        code, _, err = semcal(monkeypatch, capsys, "report", *arguments)
        assert (code, message in err) == (2, True), err
        assert "Traceback" not in err


def test_a_table_aligns_words_and_numbers_and_escapes_both() -> None:
    frame = pd.DataFrame({"run": ["a <b>", "c"], "x": [0.25, None], "y": ["1 % [0, 2]", "—"], "z": ["", "+0.1, p .5"]})
    text = parts().table(html_table(frame, links=["a/report.html", "c/report.html"], minor=[False, True]))
    assert '<td class="text" data-title="run"><a href="a/report.html">a &lt;b&gt;</a></td>' in text
    assert re.findall(r'<th class="(\w+)"', text) == ["text", "number", "number", "number"]
    assert '<td class="number" data-title="x">0.250</td>' in text
    assert '<tr class="minor">' in text
    assert text.count("—") == 2


def test_a_long_table_says_once_what_is_the_same_in_all_rows() -> None:
    frame = pd.DataFrame({"target": ["classes"] * 2, "gap": [0.1, 0.2], "control": [None, None], "n": [300, 300]})
    shown, same = without_constants(frame)
    assert list(shown) == ["gap"]
    assert same == "target classes, n 300"
    assert without_constants(frame.head(1))[0].shape == (1, 4)


def test_wide_tables_become_cards() -> None:
    shapes = [html_table(pd.DataFrame([range(columns)])).shape for columns in (7, 8, 12, 13)]
    assert shapes == ["", "wide", "wide", "cards"]


def test_figures_are_shown_at_one_scale_with_their_captions() -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1500).to_bytes(4, "big") + (750).to_bytes(4, "big")
    text = parts().gallery(gallery({"a": png, "b": png}, {"a": "what <it> shows"}))
    assert re.findall(r'width="(\d+)"', text) == ["883", "883"]
    assert text.count("<figcaption>what &lt;it&gt; shows</figcaption>") == 1
    assert parts().gallery([]).strip() == ""


def parts():
    return templates.get_template("parts.html").module


def test_titles_are_words_and_small_figures_keep_their_digits() -> None:
    frame = pd.DataFrame({"skce_null_q95": [-0.00012], "smece": [0.5], "p_value": [1.0], "gold": [True]})
    table = html_table(frame)
    assert [name for name, _ in table.head] == ["SKCE null 95 % quantile", "smECE", "p", "gold"]
    assert [text for text, _ in table.rows[0].cells] == ["-0.00012", "0.500", "1.000", "yes"]


def test_no_page_shows_where_this_machine_keeps_its_files(tmp_path, grid):
    for page in (tmp_path / "runs" / "small" / "report.html", grid[0].folder / "report.html"):
        assert str(tmp_path.parent) not in page.read_text()  # of all tests


@pytest.mark.long
@pytest.mark.pictures
def test_runs_probed_by_an_earlier_version_are_shown_without_a_gap(monkeypatch, capsys, tmp_path, grid):
    drawn = "experiments.report.pages.run_figures"
    monkeypatch.setattr(drawn, lambda run, *_: {"layers": run_figures(run)["layers"]})  # the others know no gap
    for run in grid:
        probes, losses = run.probes(), run.probe_losses()
        later = [name for name in probes if name == "pooled" or name.startswith("gap")]
        run.write_probes(probes.drop(columns=later))
        run.write_probe_losses(losses.drop(columns=["gap_nats", "gap_top_nats"]))
        run.change_manifest(lambda manifest: {key: value for key, value in manifest.items() if key != "kl_gap"})
    for command in ("ls", "report"):
        code, out, err = semcal(monkeypatch, capsys, command, tmp_path / "runs" / "small")
        assert code == 0, err
        if command == "ls":
            assert "KL gap" in out
            assert all(line.rstrip().endswith("—") for line in out.splitlines() if "finished" in line)
    rows = [(stored_cell(run), run) for run in grid]
    assert predictability(rows) is None
    assert "layers" in shown(grid[0].folder / "report.html")  # the share explained alone
    said = [remark for remark in remarks(*rows[0]) if "KL gap" in remark]
    assert said == ["No KL gap: the probes are of an earlier version of semcal; `semcal probe RUN` computes it."]
    study = load_study(tmp_path / "study.yaml")
    monkeypatch.setattr("experiments.verdict.study_verdict.check_parsed", lambda _: None)
    assert [line.partition(": ")[2][:23] for line in judge_study(study).missing] == ["probed without a KL gap"] * 2


@pytest.mark.parametrize(("known", "told"), [(None, False), (0.95, False), (0.54, True)])
def test_wrong_answers_of_unknown_form_are_remarked_upon(monkeypatch, tmp_path, study_dict, known, told):
    (run,) = run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})
    figures = run.calibration() | {"wrong_answers_with_known_forms": known}
    monkeypatch.setattr(Run, "calibration", lambda _: figures)
    assert any("B knows the form of 54% of the wrong" in said for said in remarks(stored_cell(run), run)) == told
