"""The scan by which the datasets of a study are chosen: other questions than it evaluates, answers as it would get them."""

import pytest

from experiments.config.study import load_study
from experiments.sample import accuracy_scan
from experiments.sample.accuracy_scan import main, scan, unevaluated
from semcal import UserError
from tests.conftest import save_checkpoint
from tests.experiments.conftest import write_study
from tests.hostile.test_stops_and_tokens import TEMPLATES, turn_tokens


@pytest.fixture
def study(tmp_path, study_dict):
    study_dict["datasets"][0]["n"] = 20
    return write_study(tmp_path, study_dict)


def test_it_asks_what_the_study_neither_evaluates_nor_shows(study):
    loaded = load_study(study)
    config, prompting = loaded.datasets[0], loaded.prompting
    evaluated = accuracy_scan.load_dataset(config, prompting)
    scanned = unevaluated(config, prompting, 15)
    asked = {q.group for q in evaluated.questions} | {q.text for q in (*evaluated.questions, *evaluated.exemplars)}
    assert len(scanned.questions) == 15
    assert not asked & {name for q in scanned.questions for name in (q.group, q.text)}


def test_a_study_that_evaluates_all_leaves_nothing(study):
    loaded = load_study(study, ["datasets.0.n=1000"])
    with pytest.raises(UserError, match=r"evaluates all .* lower its n"):
        unevaluated(loaded.datasets[0], loaded.prompting, 15)


def test_answers_of_a_chat_model_end_where_its_template_ends_them(tmp_path, study_dict, monkeypatch):
    folder, tokenizer = save_checkpoint(tmp_path / "chat"), turn_tokens(special=False)
    tokenizer.chat_template, end = TEMPLATES[0].values
    tokenizer.save_pretrained(folder)
    study_dict["models"] = [{"path": str(folder), "name": "m", "device": "cpu", "prompt": "chat"}]
    study_dict["datasets"][0]["n"] = 20
    stops, real = [], accuracy_scan.sample
    monkeypatch.setattr(accuracy_scan, "sample", lambda *a, **how: (stops.append(how["stop"]), real(*a, **how))[1])
    (found,) = scan(load_study(write_study(tmp_path, study_dict)), n=6, m=4)
    assert end in stops[0]
    assert found.questions == 6
    assert 0 <= found.accuracy <= 1


def test_each_cell_is_a_line_and_a_wrong_study_one_with_the_remedy(study, capsys):
    assert main([str(study), "-n", "6", "-m", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "llama · colours · concise: right" in line
    assert "n = 6, M = 4" in line
    assert main([str(study), "--set", "datasets.0.n=1000"]) == 2
    assert "error: colours: the study evaluates all" in capsys.readouterr().err
