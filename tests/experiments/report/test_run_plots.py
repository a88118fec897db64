"""Every figure of a run is drawn from a notebook with defaults, and one that the run lacks is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import probes
from experiments.cli import app
from experiments.report.figures.figure_files import save_figures
from experiments.report.figures.run_figures import run_figures
from semcal import Run, UserError
from semcal.calibration.plots.sheet import COLUMN
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.readable import complaints


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint):
    """A run with probes, and the same without."""
    folder = tmp_path_factory.mktemp("plots")
    study = study_of(checkpoint, questions_in(folder), folder)
    (probed,) = run_dict(folder, study | {"name": "probed"})
    (bare,) = run_dict(folder, study | {"name": "bare", "probes": {"enabled": False}})
    return {"probed": Run.open(probed.folder), "bare": Run.open(bare.folder)}


@pytest.mark.parametrize("width", [None, COLUMN])
def test_every_figure_of_calibration_needs_nothing_but_the_run(runs, width):
    figures = runs["bare"].plot.figures(width=width)
    assert list(figures) == ["reliability", "risk_coverage", "m_curve", "profile", "knowing"]
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        assert complaints(figure) == [], name
        assert figure.get_suptitle().replace("\n", " · ") == runs["bare"].plot.title()


def test_a_title_can_be_given_or_left_out(runs):
    assert runs["bare"].plot.reliability(title="mine").get_suptitle() == "mine"
    assert runs["bare"].plot.reliability(title="").get_suptitle() == ""


def test_the_title_says_model_dataset_and_style(runs):
    config = runs["bare"].config()
    title = f"{config['model']['name']} · {config['dataset']['name']} · {config['style']}"
    assert runs["bare"].plot.title() == title


def test_figures_of_probes_are_drawn_where_there_are_probes(runs):
    layers = probes.plot(runs["probed"]).layers(width=COLUMN)
    assert layers.get_figwidth() == COLUMN
    assert complaints(layers) == []
    assert "layers" in run_figures(runs["probed"])
    assert "layers" not in run_figures(runs["bare"])


@pytest.mark.parametrize("name", ["layers", "positions", "rungs", "learning", "commitment"])
def test_what_the_run_lacks_is_one_line_with_the_remedy(runs, name):
    run = runs["bare"]
    with pytest.raises(UserError, match=rf"has no .*`semcal probe {re.escape(str(run.folder))}`") as raised:
        getattr(probes.plot(run), name)()
    assert "\n" not in str(raised.value)


def test_a_target_without_probes_is_refused(runs):
    with pytest.raises(UserError, match="no probes of 'entropi'; it has those of classes"):
        probes.plot(runs["probed"], "entropi")
    with pytest.raises(UserError, match="it was not probed"):
        probes.plot(runs["bare"], "classes")


def test_a_run_that_was_not_scored_has_no_figure(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="semcal run"):
        Run.open(tmp_path).plot.reliability()
    with pytest.raises(UserError, match="semcal run"):
        Run.open(tmp_path).plot.figures()


@pytest.mark.long
@pytest.mark.pictures
def test_report_draws_all_figures_at_the_width_asked_for(runs, capsys):
    folder = runs["bare"].folder
    app(["report", str(folder), "--width", "3.25"], standalone_mode=False)
    assert "report.html" in capsys.readouterr().out
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {"reliability", "risk-coverage", "m-curve", "profile", "knowing"}
    for name in drawn:
        assert imread(folder / "figures" / f"{name}.png").shape[1] == pytest.approx(3.25 * 150, abs=1)
        assert (folder / "figures" / f"{name}.svg").is_file()


def test_text_in_a_pdf_is_embedded_as_truetype(tmp_path, runs):
    save_figures({"a": runs["bare"].plot.risk_coverage()}, tmp_path)
    body = (tmp_path / "a.pdf").read_bytes()
    assert body.startswith(b"%PDF")
    assert b"/FontFile2" in body  # TrueType, embedded
    assert b"/Type3" not in body


def test_the_same_figure_is_the_same_files(tmp_path, runs):
    for folder in ("one", "two"):
        save_figures({"a": runs["bare"].plot.risk_coverage()}, tmp_path / folder)
    for name in ("a.png", "a.svg", "a.pdf"):
        assert Path(tmp_path / "one" / name).read_bytes() == Path(tmp_path / "two" / name).read_bytes()
