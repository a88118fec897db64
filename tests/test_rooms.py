"""The rules of the house: who may import whom, how full a folder is, how files are named, how long a signature is."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("semcal", "probes", "experiments")
FORBIDDEN = {
    "semcal": ("probes", "experiments"),
    "probes": ("experiments",),
    "semcal/calibration": (
        "torch",
        "transformers",
        "semcal.models",
        "semcal.sampling",
        "semcal.answers",
        "semcal.runs",
    ),
    "semcal/semantics": (
        *("torch", "transformers", "semcal.models", "semcal.sampling", "semcal.answers", "semcal.runs"),
        "semcal.calibration",
    ),
    "semcal/sampling": (
        *("semcal.questions", "semcal.semantics", "semcal.calibration", "semcal.models", "semcal.runs"),
    ),
    "semcal/models": ("semcal.questions", "semcal.semantics", "semcal.calibration", "semcal.runs"),
    "semcal/questions": ("torch", "transformers", "semcal.models", "semcal.sampling", "semcal.answers", "semcal.runs"),
    **{
        f"experiments/{room}": ("experiments.pipeline", "experiments.cli")
        for room in ("config", "sample", "score", "probe", "compare", "verdict", "report", "train")
    },
}
MOST_ENTRIES = 12
COMMANDS = 14  # entries of experiments/, where each command has a room
MOST_PARAMETERS = 8
# Words that do not say what is in a file.
VAGUE = {
    "beside",
    "material",
    "details",
    "conditions",
    "trials",
    "shapes",
    "standins",
    "screen",
    "reading",
    "mechanism",
}
VAGUE |= {"evidence", "utils", "helpers", "misc", "common", "comparable"}


def files(room: str = "") -> Iterator[Path]:
    for package in [room] if room else PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


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
    assert list(files(room))
    for path in files(room):
        for name in imports(path):
            for banned in FORBIDDEN[room]:
                assert not f"{name}.".startswith(f"{banned}."), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_at_most_twelve_entries(package):
    for folder in [ROOT / package, *(ROOT / package).rglob("*")]:
        if folder.is_dir() and folder.name != "__pycache__":
            entries = {e.name for e in folder.iterdir()} - {"__init__.py", "__pycache__"}
            most = COMMANDS if folder == ROOT / "experiments" else MOST_ENTRIES
            assert len(entries) <= most, f"{folder.relative_to(ROOT)}: {len(entries)} entries"


def test_no_two_files_share_a_name_and_every_name_says_something():
    names = Counter(path.name for path in files() if path.name != "__init__.py")
    assert not [name for name, times in names.items() if times > 1]
    assert not {path.stem for path in files()} & VAGUE


def test_no_function_has_more_than_eight_parameters():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                given = [name for name in given if name not in ("self", "cls")]
                assert len(given) <= MOST_PARAMETERS, f"{path.relative_to(ROOT)}: {node.name}{tuple(given)}"


def test_no_pickle_and_no_print():
    for path in files():
        assert not {"pickle", "joblib", "torch.load", "torch.save"} & imports(path), path
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {ast.unparse(c.func) for c in calls}
        assert not {"print", "torch.load", "torch.save", "pickle.load", "pickle.dump", "np.load"} & names, path
