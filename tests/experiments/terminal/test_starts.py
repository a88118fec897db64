"""A command that only has to say something says it before anything slow is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# pydantic is not among them: typer imports it. That the schema of a study is not built is asserted instead.
SLOW = ("torch", "transformers", "pandas", "matplotlib", "scipy", "sklearn", "wandb", "experiments.config.study")
EVIDENCE = Path(__file__).parents[3] / "docs" / "results" / "evidence"


def imported(tmp_path: Path, *arguments: str) -> tuple[int, set[str]]:
    """Exit code of a command, and which of the slow packages were imported."""
    code = (
        "import sys, json\n"
        "from experiments.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    code = ended.code or 0\n"
        f"open('found.json', 'w').write(json.dumps([code, [m for m in {SLOW} if m in sys.modules]]))"
    )
    path = [str(Path(__file__).parents[3]), *filter(None, [sys.path[0]])]
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    ended, found = json.loads((tmp_path / "found.json").read_text())
    return ended, set(found)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["rnu"], 2),
        (["run", "--hlp"], 2),
        (["run", "--help"], 0),
        (["run", "no-such.yaml"], 2),
        (["score", "no-such-run"], 2),
        (["compare", "runs/*"], 2),
        (["intervene", "runs", "--kind", "ablte"], 2),
        (["ls", "nowhere"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_typing_mistakes_import_nothing_slow(tmp_path, arguments, code):
    assert imported(tmp_path, *arguments) == (code, set())


def test_a_mistake_in_a_study_is_found_without_torch_and_pandas(tmp_path):
    (tmp_path / "study.yaml").write_text("name: a\nmodelz: []\n")
    code, found = imported(tmp_path, "run", "study.yaml")
    assert (code, found) == (2, {"experiments.config.study"})


def test_ls_imports_nothing_slow(tmp_path):
    shutil.copytree(EVIDENCE / "real", tmp_path / "runs")
    assert imported(tmp_path, "ls") == (0, set())
    assert imported(tmp_path, "ls", "--json", "runs/*") == (0, set())
