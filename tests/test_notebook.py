"""The notebook of the docs runs from top to bottom. `python -m tests.test_notebook` runs it and stores its outputs."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"


def run_cell(source: str, scope: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression (None if it ends in a statement)."""
    *body, last = ast.parse(source).body
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(body, []), "notebook", "exec"), scope)
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), scope)
        else:
            exec(compile(source, "notebook", "exec"), scope)
    return printed.getvalue(), value


def outputs_of(printed: str, value: Any, count: int) -> list[dict[str, Any]]:
    """The outputs of a cell as nbformat 4 stores them."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        if isinstance(value, Figure):
            value.savefig(png := io.BytesIO(), format="png", dpi=60, metadata={"Software": None})
            data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": ["<Figure>"]}
        elif isinstance(value, pd.DataFrame):
            data["text/plain"] = value.to_string().splitlines(keepends=True)
            data["text/html"] = value.to_html(float_format="{:.3f}".format, border=0).splitlines(keepends=True)
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
    return outputs


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code cells, run in one namespace."""
    scope: dict[str, Any] = {}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        printed, value = run_cell("".join(cell["source"]), scope)
        cell |= {"execution_count": count, "outputs": outputs_of(printed, value, count)}
    return notebook


@pytest.mark.long
def test_the_notebook_runs_and_shows_what_it_computes(tmp_path, monkeypatch):
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    kinds = [[output["output_type"] for output in cell.get("outputs", ())] for cell in stored["cells"]]
    monkeypatch.chdir(tmp_path)
    again = executed(stored)
    assert kinds == [[output["output_type"] for output in cell.get("outputs", ())] for cell in again["cells"]]
    assert any("image/png" in output.get("data", {}) for cell in again["cells"] for output in cell.get("outputs", ()))
    assert NOTEBOOK.stat().st_size < 150_000


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = executed(found)
    NOTEBOOK.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
