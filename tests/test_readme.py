"""The README is short, and its notebook lines run as printed."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_is_at_most_8000_bytes():
    assert len(README.read_bytes()) <= 8000


def test_the_ten_lines_run(capsys):
    section = README.read_text(encoding="utf-8").split("## In a notebook\n", 1)[1].split("\n## ", 1)[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert 0 <= scope["summary"].smece <= 1
    assert "smECE" in capsys.readouterr().out
