"""The notebook lines of the README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_ten_lines_run():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 10
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert 0 <= scope["error"] <= 1
