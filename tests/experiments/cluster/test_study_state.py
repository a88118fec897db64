"""How far a study is and who is at work on it, as its folders tell."""

from __future__ import annotations

import os
import time

import pytest

from experiments.cluster.study_state import StudyState, last_words, log_of, name_log, study_state
from semcal.runs.claims import LEASE_S, claimed, holder, part
from semcal.runs.run import Run
from tests.experiments.conftest import run_dict


@pytest.fixture
def run(study_dict, tmp_path) -> Run:
    """A finished run of 48 questions in 6 shards."""
    study_dict["probes"]["enabled"] = False
    return run_dict(tmp_path, study_dict)[0]


def only(state: StudyState):
    (cell,) = state.cells
    return cell


def test_a_study_that_was_not_begun_has_the_questions_it_is_said_to_have(tmp_path):
    state = study_state([tmp_path / "a", tmp_path / "b"], [30, 50])
    assert (state.questions, state.answered, state.finished) == (80, 0, 0)
    assert [cell.words for cell in state.cells] == ["not begun"] * 2


def test_questions_of_cells_that_share_their_samples_are_counted_once(run, tmp_path):
    state = study_state([run.folder, tmp_path / "same", tmp_path / "other"], [48, 48, 20], [0, 0, 1])
    assert (state.questions, state.answered) == (48 + 20, 48)


def test_the_state_of_a_cell_follows_its_files(run):
    cell = only(study_state([run.folder]))
    assert (cell.questions, cell.answered, cell.shards, cell.finished) == (48, 48, 6, 6)
    assert cell.words == "finished"
    (run.folder / "report.html").unlink()
    assert only(study_state([run.folder])).words == "sampled"

    rows = {q: found.to_dict("records") for q, found in run.samples().groupby("question_id")}
    gone, half = run.shard_keys()[2:4]
    (run.folder / "activations" / f"{gone}.safetensors").unlink()
    (run.folder / "samples" / f"{half}.parquet").unlink()
    kept = {
        q: [r | {"text": '[{"question_id":', "token_ids": list(map(int, r["token_ids"]))} for r in rows[q]]
        for q in list(rows)[:3]
    }
    with run.open_partial(half) as partial:
        partial.append(kept)
    with (run.folder / "samples" / f"{half}.partial.jsonl").open("a") as stream:
        stream.write('{"cut": [{"question_id":"cut"')
    cell = only(study_state([run.folder]))
    assert (cell.answered, cell.finished) == (48 - 16 + 3, 4)
    assert cell.answered == run.questions_saved()
    assert cell.words == "stopped at 73%"
    with claimed(run.folder, part(gone)):
        assert only(study_state([run.folder])).words == "sampling 73%"


def test_a_claim_names_its_process_and_its_log(run, tmp_path):
    key, log = run.shard_keys()[1], tmp_path / "job.log"
    with claimed(run.folder, part(key)):
        (held,) = only(study_state([run.folder])).held
        assert (held.shard, held.by, held.dead, held.log) == (key, holder(run.folder, part(key)), False, None)
        name_log(run.folder.parent, log)
        state = study_state([run.folder])
        assert only(state).held[0].log == log_of(run.folder.parent, held.by) == log
        assert list(state.workers) == [held.by]
    with claimed(run.folder):
        assert only(study_state([run.folder])).words == "in analysis"
    assert not only(study_state([run.folder])).held


def test_a_process_elsewhere_is_taken_for_dead_after_its_lease(run):
    claim = run.folder / part(run.shard_keys()[0])
    claim.parent.mkdir(exist_ok=True)
    claim.write_text("filelock/2\npid=12\nhost=another-machine\n")
    assert not study_state([run.folder]).dead
    before = time.time() - LEASE_S - 60
    os.utime(claim, (before, before))
    state = study_state([run.folder])
    assert [held.by for _, held in state.dead] == ["process 12 on another-machine"]
    assert not state.workers


def test_the_last_words_of_a_log_are_its_last_line_that_says_something(tmp_path):
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_text("x" * 10_000 + "\nsemcal: no space left\n\n  \n")
    assert last_words(log) == "semcal: no space left"
