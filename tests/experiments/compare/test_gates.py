"""`semcal gate`: thresholds on the confidences of a run, and when there is none."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from experiments.atlas.world_questions import query_of, world_of
from experiments.compare.gates import (
    FILES,
    SAMPLED,
    Row,
    Source,
    as_frame,
    explanation,
    gates,
    single_errors,
    sources,
    write_gates,
)
from experiments.report.look_tables import gates_table
from semcal.errors import UserError
from semcal.runs.run import Run
from semcal.runs.without_texts import keep_without_texts
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("gates")
    study = study_of(checkpoint, questions_in(folder), folder) | {"probes": {"enabled": False}}
    return run_dict(folder, study)[0]


def sure(n, seed):
    """Calibrated confidences, and answers that are right as often."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0, 1, n)
    return confidence, (rng.random(n) < confidence).astype(float)


def test_the_promise_is_kept_on_questions_to_come():
    broken, answered = 0, []
    for seed in range(60):
        confidence, correct = sure(2_000, seed)
        own = {"B": Source(confidence, correct, [str(i) for i in range(2_000)])}
        (row,) = gates(own, [0.2], delta=0.1, guarantee="of the answers")
        assert row.found is not None
        later, right = sure(20_000, 1_000 + seed)
        given = later >= row.found.threshold
        answered.append(given.mean())
        broken += given.any() and 1 - right[given].mean() > 0.2
    assert broken <= 10  # 6 expected at most
    assert np.mean(answered) > 0.2  # 0.4 with the true threshold, 0.6


def test_a_risk_that_so_few_groups_cannot_show_is_said_with_the_number():
    confidence, correct = sure(30, 0)
    own = {"B": Source(confidence, correct, [str(i) for i in range(30)])}
    few, enough = gates(own, [0.05, 0.2], delta=0.1, guarantee="of the answers")
    assert few.found is None
    assert "it would take" in few.reason
    assert as_frame([few, enough], {})["guarantee"].tolist() == ["of the answers"] * 2
    assert enough.found is not None
    with pytest.raises(UserError, match="30 groups of questions cannot show a risk"):
        gates(own, [0.05], delta=0.1, guarantee="of the answers")


def test_a_gate_that_can_never_open_says_how_many_right_answers_it_would_take():
    labels = [str(i) for i in range(200)]
    own = {"B": Source(np.ones(200), np.repeat([1.0, 0.0], [40, 160]), labels)}
    five, twenty = gates(own, [0.05, 0.2], delta=0.1, guarantee="of the answers")
    assert five.found is not None
    assert np.isinf(five.found.threshold)
    assert "B is right on 40 groups of questions, and a risk of 0.05 of the answers takes 110" in five.reason
    assert twenty.reason == ""  # forty would do, were they told apart
    said = explanation([five, twenty], {}, 0.1, "of the answers")
    assert five.reason in said
    assert "approximate" in said
    assert "approximate" not in explanation(
        [Row(SAMPLED, 0.2, "of the answers", twenty.found)], {}, 0.1, "of the answers"
    )


def test_a_run_is_gated_without_its_model(monkeypatch, capsys, run):
    code, said, err = semcal(monkeypatch, capsys, "gate", run.folder, "--risk", "0.5", "--risk", "0.3")
    assert code == 0, err
    for word in ("B-confidence", "answer where", "50 %", "30 %", "guarantee"):
        assert word in said, word
    table = pd.read_csv(run.folder / "looks/gates/gates.csv")
    assert table["risk"].tolist() == [0.5, 0.3]
    assert all((run.folder / "looks/gates" / name).stat().st_size for name in FILES)


BOTH = ("--risk", "0.05", "--guarantee", "of the answers", "--guarantee", "of the questions")


@pytest.mark.parametrize("guarantees", [BOTH, (*BOTH[:2], *BOTH[4:], *BOTH[2:4])], ids=["first", "last"])
def test_a_guarantee_that_so_few_groups_cannot_give_does_not_keep_another_from_being_found(
    monkeypatch, capsys, run, guarantees
):
    code, said, err = semcal(monkeypatch, capsys, "gate", run.folder, *guarantees, "--json")
    assert code == 0, err
    (left_out,) = json.loads(said)["left_out"]
    assert left_out.startswith(f"{run.folder}: 48 groups of questions cannot show a risk of 0.05 of the answers")
    assert set(run.gates()["guarantee"]) == {"of the questions"}
    code, _, err = semcal(monkeypatch, capsys, "gate", run.folder, *BOTH[:4])
    assert code == 2
    assert "48 groups of questions cannot show a risk" in err
    assert set(run.gates()["guarantee"]) == {"of the questions"}  # as it was


def test_a_run_of_too_few_groups_does_not_keep_others_from_being_gated(monkeypatch, capsys, tmp_path, run):
    few, enough = (Run(shutil.copytree(run.folder, tmp_path / name)) for name in ("a", "b"))
    few.write_classes(run.class_table().select(range(5)))
    code, said, err = semcal(monkeypatch, capsys, "gate", few.folder, enough.folder, "--risk", "0.3", "--json")
    assert code == 0, err
    found = json.loads(said)
    assert [one["folder"] for one in found["runs"]] == [str(enough.folder)]
    (left_out,) = found["left_out"]
    assert left_out.startswith(f"{few.folder}: 5 groups of questions cannot show a risk")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--risk", "1.5"), "1.5 is no share"),
        (("--delta", "0"), "0 is no share"),
        (("--guarantee", "of answers"), "did you mean 'of the answers'"),
    ],
)
def test_settings_that_make_no_sense(monkeypatch, capsys, run, args, message):
    code, _, err = semcal(monkeypatch, capsys, "gate", run.folder, *args)
    assert code == 2
    assert message in err


def test_of_the_organism_each_confidence_is_held_against_the_true_chance_of_its_answer(tmp_path):
    study = {
        "name": "single",
        "models": [{"path": "atlas:base"}],
        "datasets": [{"kind": "atlas", "family": "facts", "n": 40}],
        "prompting": {"shots": 1, "exemplars": 4},
        "styles": ["concise"],
        "output": str(tmp_path),
        "sampling": {"m": 10, "max_new_tokens": 8},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
        "capture": {"positions": []},
        "probes": {"enabled": False},
        "tracking": {"wandb": "disabled"},
    }
    (run,) = run_dict(tmp_path, study)
    found, world = sources(run), world_of("facts", 0)
    table = run.class_table()
    true = [world.truth(query_of(q)).get(own[0], 0.0) for q, own in zip(table.questions, table.classes, strict=True)]
    expected = np.sqrt(np.mean((table.by_count.plug_in - np.array(true)) ** 2))
    errors = single_errors(run, found)
    assert errors == pytest.approx({"B-confidence": expected})
    rows = gates(found, [0.3], delta=0.1, guarantee="of the questions")
    write_gates(run, rows, rows, errors, None)
    assert run.gates()["single_error"].tolist() == pytest.approx([expected])
    assert gates_table(run.gates())["error per question"].tolist() == [f"{expected:.3f}"]
    known = Source(np.array(true), np.ones(40), [], table.questions, [own[0] for own in table.classes])
    assert single_errors(run, {"known": known}) == pytest.approx({"known": 0.0})
    keep_without_texts(run, tmp_path / "kept")
    kept = Run(tmp_path / "kept" / run.name)
    assert single_errors(kept, sources(kept)) == {}  # its classes are numbers, of which the world knows nothing


def test_of_other_questions_the_true_chance_is_not_known(run):
    assert single_errors(run, sources(run)) == {}
    rows = gates(sources(run), [0.3], delta=0.1, guarantee="of the questions")
    assert "error per question" not in gates_table(as_frame(rows, {}))
