"""The documentation names files, commands and keys that exist."""

from __future__ import annotations

import re
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
