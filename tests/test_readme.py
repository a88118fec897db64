"""The README is short, and its notebook lines run as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_is_at_most_8000_bytes():
    assert len(README.read_bytes()) <= 8000


def test_the_ten_lines_run():
    section = README.read_text(encoding="utf-8").split("## In a notebook\n", 1)[1].split("\n## ", 1)[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    if code is None:
        pytest.skip("the README has no notebook lines yet")
    lines = [line for line in code[1].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    exec(compile(code[1], "README.md", "exec"), {})
