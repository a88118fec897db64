"""Studies that sample and capture in a real vLLM behind an address, on the CPU: records, and a server that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.sample import portions
from semcal import Run, UserError
from semcal.sampling.vllm.vllm_server import Expected, serve_command
from tests.experiments.conftest import write_study
from tests.experiments.sample.test_vllm_cell import study_in
from tests.sampling.in_vllm.test_vllm_engine import write_checkpoint
from tests.servers import vllm_by

pytestmark = pytest.mark.vllm


class Kills(Reporter):
    """Kills a server, and what it started, after some answered questions."""

    def __init__(self, server: int, questions: int) -> None:
        self.server, self.left = server, questions

    def answered(self, questions: int) -> None:
        self.left -= questions
        if self.left <= 0 and psutil.pid_exists(self.server):
            server = psutil.Process(self.server)
            for process in (*server.children(recursive=True), server):
                process.kill()


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vllm-served")


@pytest.fixture(scope="module")
def checkpoint(room) -> Path:
    return write_checkpoint("llama", room / "llama")


@pytest.fixture(scope="module")
def command(checkpoint) -> str:
    return serve_command(Expected(str(checkpoint), None, "float32", layers=4, width=64, vocabulary=32), 256)


@pytest.fixture(scope="module")
def server(room, command) -> Iterator[tuple[str, int]]:
    with vllm_by(command, room / "log") as found:
        yield found


def run_in(room: Path, study: dict[str, Any], reporter: Reporter | None = None) -> Run:
    prepared = prepare_study(load_study(write_study(room, study)))
    run_study(prepared, reporter or Reporter())
    return Run.open(prepared.cells[0].folder)


def served_in(room: Path, checkpoint: Path, name: str, url: str) -> dict[str, Any]:
    study = study_in(room, checkpoint, name)
    study["models"] = [{"path": str(checkpoint), "name": "llama", "engine": "vllm", "served_at": url}]
    study["models"][0]["served"] = {"tries": 2, "timeout": 300}
    return study


def test_a_run_behind_an_address_has_the_activations_of_hugging_face_and_names_the_server(room, checkpoint, server):
    ours = run_in(room, served_in(room, checkpoint, "served", server[0]))
    theirs = run_in(room, study_in(room, checkpoint, "here", "hf"))
    assert {check["outcome"] for check in ours.manifest()["checks"]} == {"passed"}
    assert ours.samples().groupby("question_id")["count"].sum().eq(20).all()
    for position in ("last_prompt_token", "last_question_token"):
        here, there = ours.activations(position), theirs.activations(position)
        assert (here.layers, here.token_ids.tolist()) == (there.layers, there.token_ids.tolist())
        for layer in here.layers:
            apart = np.abs(here.layer(layer) - there.layer(layer)).max()
            assert apart < 1e-3 * np.abs(there.layer(layer)).max()
    engine = ours.manifest()["engine"]
    assert (engine["name"], engine["server"], engine["device"]) == ("vllm", server[0], "cpu")
    assert engine["version"].startswith("0.")
    settings = engine["settings"]
    assert (settings["logprobs_mode"], settings["generation_config"]) == ("processed_logprobs", "vllm")
    assert (settings["enable_prefix_caching"], settings["max_model_len"]) == (True, 256)
    assert max(engine["compared"]["layers"].values()) < 1e-3
    assert engine["compared"]["nats"] < 1e-3


def test_a_server_that_is_killed_leaves_finished_questions_and_the_same_command_continues(
    room, checkpoint, server, command, monkeypatch
):
    monkeypatch.setitem(portions.OPERATIONS_PER_S, "cpu", 3.6e5)  # so slow that a shard has several portions
    whole = run_in(room, served_in(room, checkpoint, "served", server[0]))
    study = served_in(room, checkpoint, "killed", server[0])
    with pytest.raises(UserError, match=r"failed 2 times.* questions are saved, and the same command continues"):
        run_in(room, study, Kills(server[1], 30))
    kept = Run.open(next((room / "runs" / "killed").glob("*__*"))).questions_saved()
    assert 0 < kept < 48
    with vllm_by(command, room / "again", urlsplit(server[0]).port):
        run = run_in(room, study)
    found = run.samples()
    assert found.groupby("question_id")["count"].sum().eq(20).all()
    assert found["question_id"].nunique() == 48
    alike = found.merge(whole.samples(), on=["question_id", "text", "count", "finish"])
    assert len(alike) >= 0.9 * len(found)  # the same seeds; rounding may move a draw
