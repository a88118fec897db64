"""`semcal gate`: thresholds on the confidences of a run, and when there is none."""

import numpy as np
import pandas as pd
import pytest

from experiments.compare.gates import FILES, Source, gates
from semcal.errors import UserError
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
    assert enough.found is not None
    with pytest.raises(UserError, match="30 groups of questions cannot show a risk"):
        gates(own, [0.05], delta=0.1, guarantee="of the answers")


def test_a_run_is_gated_without_its_model(monkeypatch, capsys, run):
    code, said, err = semcal(monkeypatch, capsys, "gate", run.folder, "--risk", "0.5", "--risk", "0.3")
    assert code == 0, err
    for word in ("B-confidence", "answer where", "50 %", "30 %", "guarantee"):
        assert word in said, word
    table = pd.read_csv(run.folder / "looks/gates/gates.csv")
    assert table["risk"].tolist() == [0.5, 0.3]
    assert all((run.folder / "looks/gates" / name).stat().st_size for name in FILES)


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
