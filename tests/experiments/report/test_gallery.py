"""The pictures of figures/ and the studies that draw them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from experiments.config.study import load_study
from experiments.report.gallery import SHOWN, collect, of, page, pictures

STUDIES = Path("experiments/studies")
BY_BENCH = {"sampler-growth.png"}
BY_TRANSFER = "transfer"  # `semcal transfer` writes into a folder of its own, not into that of a study


def test_every_picture_shown_is_one_that_a_study_draws():
    shown = {path.name for path in Path("figures").glob("*.png")} - BY_BENCH
    shown -= {name for name in shown if name.startswith("real-reliability-")}  # drawn with their page
    assert shown <= set(pictures())


def test_every_picture_is_of_a_cell_of_its_study():
    for place in pictures().values():
        name, cell, *_ = place.split("/")
        if name == BY_TRANSFER:
            assert cell == "transfer.png"
            continue
        (file,) = STUDIES.rglob(f"{name}.yaml")
        study = load_study(file, [])
        assert cell == "figures" or cell in {Path(c.folder).name for c in study.cells()}, place


def test_every_picture_is_explained_with_the_command_that_makes_it():
    names = {path.name for path in Path("figures").glob("*.png")} | set(pictures())
    assert not [name for name in names if of(name) is None]
    assert not [shown.names for shown in SHOWN if shown not in {of(name) for name in names}]


def test_the_page_is_as_the_command_writes_it_and_shows_every_picture_once():
    text = Path("docs/gallery.md").read_text()
    assert text == page(Path("figures"), Path("docs"))
    for path in Path("figures").glob("*.png"):
        assert text.count(f"(../figures/{path.name})") == 1


def test_a_picture_that_is_not_there_is_not_shown(tmp_path):
    (tmp_path / "emergence.png").write_bytes(b"png")
    text = page(tmp_path, tmp_path)
    assert "## Along training" in text
    assert text.count("![") == 1


def test_what_is_there_is_copied_and_what_is_not_is_named(tmp_path):
    there = tmp_path / "runs" / pictures()["emergence.png"]
    there.parent.mkdir(parents=True)
    there.write_bytes(b"png")
    (tmp_path / "figures").mkdir()
    copied, absent = collect(tmp_path / "runs", tmp_path / "figures")
    assert copied == ["emergence.png"]
    assert (tmp_path / "figures" / "emergence.png").read_bytes() == b"png"
    assert len(absent) == len(pictures()) - 1


def test_a_missing_folder_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.report.gallery", "--into", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not a folder; name one with --into" in done.stderr
