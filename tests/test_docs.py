"""The documentation names files, commands and keys that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from experiments.cli import app
from experiments.config.study import (
    CalibrationConfig,
    CaptureConfig,
    ModelConfig,
    ProbesConfig,
    PromptingConfig,
    SamplingConfig,
    Study,
    TrackingConfig,
    parse,
)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "figures/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_relative_links_resolve(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        linked = (page.parent / target).resolve() if target else page
        name = linked.relative_to(ROOT).as_posix()
        assert linked.exists(), f"{ids(page)} links to {name}, which does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{ids(page)} links to {name}#{anchor}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page):
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = re.findall(r"(?:`|^|\n)semcal ([a-z]+)", page.read_text(encoding="utf-8"))
    assert not set(named) - commands, f"{ids(page)} names commands that do not exist"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_modules_that_are_run_exist(page):
    for module in re.findall(r"python -m (experiments[\w.]*)", page.read_text(encoding="utf-8")):
        path = ROOT / module.replace(".", "/")
        known = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        assert known, f"{ids(page)} runs {module}"


def test_the_page_on_studies_explains_every_key():
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    groups = (ModelConfig, SamplingConfig, PromptingConfig, CaptureConfig, CalibrationConfig, ProbesConfig)
    for group in (Study, *groups, TrackingConfig):
        for key in group.model_fields:
            assert re.search(rf"`([\w.]+\.)?{key}`|`{key}:|## `.*{key}", text), f"docs/studies.md leaves out {key}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_complete_studies_are_valid(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        if "name:" in block.splitlines()[0]:
            parse(Study, yaml.safe_load(block), ids(page))


def made_by(target: str, **environment: str) -> list[str]:
    """The commands of a target of the Makefile, in a shell with these variables."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    how = {"cwd": ROOT, "env": own | environment, "capture_output": True, "text": True, "check": True}
    lines = subprocess.run(["make", "--dry-run", "--always-make", *target.split()], **how).stdout.splitlines()
    return [" ".join(line.replace(".venv/bin/", "").split()) for line in lines]


def test_make_real_lineage_calls_what_its_page_says():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = re.findall(r"```\n(.*?)```", page[page.index("## Measuring a real lineage") :], re.DOTALL)[0]
    said = [" ".join(line.split()) for line in block.replace("\\\n", "").splitlines()]
    assert said[0].startswith("export SEMCAL_DATA=")
    assert made_by("real-lineage")[-len(said) + 1 :] == said[1:]


def test_targets_follow_no_variable_that_a_shell_has_for_something_else():
    usual = {"MODEL": "other", "PRESET": "other", "DATA": "other", "SEED": "7"}
    for target in ("real-lineage", "lineage"):
        assert made_by(target, **usual) == made_by(target)
    assert "semcal train atlas --out runs/seed-2 --seed 2" in made_by("lineage SEED=2")
    assert any("--from org/m --stage sft" in command for command in made_by("real-lineage MODEL=org/m"))


def test_make_real_checks_every_study_before_it_samples_any():
    commands = [command for command in made_by("real") if "semcal run" in command]
    checks = [command for command in commands if "--dry-run" in command]
    assert commands[: len(checks)] == checks
    (horizon,) = (command for command in commands[len(checks) :] if "horizon" in command)
    assert f"{horizon} --dry-run" in checks[-1]
