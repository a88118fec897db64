"""Imports run experiments -> probes -> semcal, and each room knows only what its head says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "semcal": ("probes", "experiments"),
    "probes": ("experiments",),
    "semcal/calibration": ("torch", "transformers", "semcal.models", "semcal.sampling", "semcal.answers"),
    "semcal/semantics": ("torch", "transformers", "semcal.models", "semcal.sampling", "semcal.answers"),
    "semcal/sampling": (
        "semcal.questions",
        "semcal.semantics",
        "semcal.calibration",
        "semcal.models",
        "semcal.runs.run",
    ),
    "semcal/models": ("semcal.questions", "semcal.semantics", "semcal.calibration", "semcal.runs.run"),
    "semcal/questions": ("torch", "transformers", "semcal.models", "semcal.sampling", "semcal.answers"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_nothing_it_must_not_know(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for banned in FORBIDDEN[room]:
                assert not f"{name}.".startswith(f"{banned}."), f"{path.relative_to(ROOT)} imports {name}"


def test_no_pickle_and_no_print():
    for room in ("semcal", "probes", "experiments"):
        for path in (ROOT / room).rglob("*.py"):
            assert not {"pickle", "joblib", "torch.load", "torch.save"} & imports(path), path
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {ast.unparse(c.func) for c in calls}
            assert not {"print", "torch.load", "torch.save", "pickle.load", "pickle.dump", "np.load"} & names, path
