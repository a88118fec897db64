"""A study of two styles with hostile questions and answers, drawn once for all tests of the pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.config.run_folder import stored_cell
from experiments.pipeline.run_study import analyse
from experiments.report.pages import write_report, write_study
from semcal import Run
from tests.experiments.conftest import run_dict, study_of
from tests.experiments.report.page.chromium import chromium

HOSTILE = {
    "script": "</script><script>alert('script')</script>",
    "comment": "<!--<script>",
    "image": "<img src=x onerror=alert('image')>",
    "bidi": "gnp\u202etxt.exe \u2066 over",
    "nul": "a\0b\x1b[31m",
    "long": "endless " * 12_500,
    "template": "{{ 7 * 7 }} {% raw %} ${alert(1)}",
    "markup": "&lt;b&gt; \"quoted\" 'single' <b>bold</b>",
}
IDS = ["q0\"><img src=x onerror=alert('id')>", "q/1?#%41 <b>", "q‮2"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def drawn(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, its pages written; not to be changed."""
    folder = tmp_path_factory.mktemp("pages")
    study = study_of(checkpoint, _questions(folder), folder) | {"styles": ["concise", "sentence"]}
    study["datasets"] = [{"kind": "jsonl", "path": str(folder / "asked.jsonl"), "n": 48, "name": "asked"}]
    runs = run_dict(folder, study | {"prompting": {"shots": 2, "exemplars": 4}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.pages.run_figures", lambda *_: {})
        for run in runs:
            answer_badly(run)
            analyse(stored_cell(run), run, again=["score"])
            write_report(stored_cell(run), run)
    write_study("small", [(stored_cell(run), run) for run in runs], folder / "runs" / "small")
    return folder / "runs" / "small"


@pytest.fixture
def study(drawn: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere: as if it had been sent."""
    return shutil.copytree(drawn, tmp_path / "sent")


@pytest.fixture
def run(study: Path) -> Run:
    """Its first run."""
    return Run.open(sorted(study.glob("*__concise__*"))[0])


def _questions(folder: Path) -> Path:
    colours = ["red", "blue", "green", "one", "two", "three"]
    ids = [*IDS, *(f"q{number}" for number in range(len(IDS), 60))]
    lines = [
        {
            "id": name,
            "question": f"the {colours[at % 6]} {colours[at // 6 % 6]} ? {colours[at // 36]}",
            "group": f"g{at // 3}",
        }
        | {"answers": [colours[at % 4]]}
        for at, name in enumerate(ids)
    ]
    for line, text in zip(lines, HOSTILE.values(), strict=False):
        line["question"] += f" {text[:200]}" if text.isprintable() else ""  # a file of questions refuses others
    path = folder / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def answer_badly(run: Run) -> None:
    """Let the most frequent answers of the first questions be hostile."""
    samples, key = run.samples(), run.shard_keys()[0]
    first = samples.loc[samples["question_id"].isin(list(run.questions()["id"][:8])), :]
    texts = dict(zip(first["question_id"].unique(), HOSTILE.values(), strict=True))
    seen, rows = set(), first.to_dict("records")
    for row in rows:
        if row["question_id"] not in seen:
            seen.add(row["question_id"])
            row["text"] = texts[row["question_id"]]
    run.write_samples(key, rows)
