"""`semcal tilt`: adapters learn from one half of the questions, and are asked the other."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.config.run_folder import stored_cell
from experiments.pipeline.progress import Reporter
from experiments.pipeline.tilt_run import tilt_run
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.runs.run import Run
from tests.experiments.conftest import run_dict
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture
def run(tmp_path, study_dict):
    return run_dict(tmp_path, study_dict | {"probes": {"enabled": False, "folds": 3}})[0]


def gold_logprobs(model, run, ids):
    """Mean log-probability of the gold answers' tokens after their prompts."""
    questions, prompts, found = run.questions(), run.prompt_ids(), []
    for row in np.flatnonzero(questions["id"].isin(ids)):
        answer = list(questions["written_ids"].iloc[row])
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompts[row], *answer]])).logits[0].log_softmax(-1)
        at = torch.arange(len(answer)) - 1 + len(prompts[row])
        found.append(float(logits[at, torch.as_tensor(answer)].sum()))
    return np.mean(found)


def test_every_question_is_asked_of_an_adapter_that_never_saw_its_group(monkeypatch, capsys, run):
    before = {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}
    code, said, err = semcal(monkeypatch, capsys, "tilt", run.folder)
    assert code == 0, err
    for word in ("as sampled", "temperature", "tilted model", "adapter"):
        assert word in said, word
    assert {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()} == before
    folder = run.folder / "looks/tilt"
    table = pd.read_csv(folder / "remedies.csv").set_index("remedy")
    assert table.loc["as sampled", "smece"] == pytest.approx(run.calibration()["smece"])
    asked = [set(Run(folder / half / "run").questions()["id"]) for half in ("half-1", "half-2")]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == set(run.questions()["id"])
    groups = run.questions().set_index("id")["group"]
    assert not set(groups[sorted(asked[0])]) & set(groups[sorted(asked[1])])

    plain = LanguageModel.load(stored_cell(run).model.path)
    for own, other in (asked, asked[::-1]):
        half = "half-1" if own == asked[0] else "half-2"
        tilted = LanguageModel.load(str(folder / half / "adapter"))
        learnt = json.loads((folder / half / "learnt.json").read_text())
        assert learnt["questions"] + learnt["validated"] == len(other)
        assert min(learnt["validation"]) < learnt["validation"][0]
        assert gold_logprobs(tilted, run, other) > gold_logprobs(plain, run, other) + 1


def test_what_is_finished_is_not_made_again(monkeypatch, run):
    cell = stored_cell(run)
    first = tilt_run(cell, run, Reporter())

    def never(*_, **__):
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr("experiments.pipeline.tilt_run.train_on_gold", never)
    monkeypatch.setattr("experiments.pipeline.tilt_run.sample_cell", never)
    again = tilt_run(cell, run, Reporter())
    assert again.after.distributions == first.after.distributions
    assert again.learnt == first.learnt


def test_questions_without_gold_as_the_style_writes_it(monkeypatch, run):
    questions = run.questions().assign(written_ids=[[] for _ in range(48)])
    monkeypatch.setattr(Run, "questions", lambda _: questions)
    with pytest.raises(UserError, match="only 0 of 48 questions have a gold answer as the style concise writes it"):
        tilt_run(stored_cell(run), run, Reporter())
