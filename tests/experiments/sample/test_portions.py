"""Portions of a shard: how many questions each has, what is kept of them, and what a run that goes on makes of it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.atlas.weights import bundled
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.sample import portions as portions_module
from experiments.sample.portions import GROWTH, OPERATIONS_PER_S, STEP, TARGET_S, TILES, Cost, Portions
from semcal import LanguageModel, Run, UserError
from semcal.runs.stored_activations import Activations, joined, load, save
from semcal.sampling.engine import Sampler
from tests.experiments.conftest import write_study

pytestmark = pytest.mark.long

lengths = st.lists(st.integers(1, 4000), min_size=1, max_size=300)
costs = st.lists(st.builds(Cost, st.floats(0, 1e6), st.integers(0, 1000)), max_size=300)


# ---- the rule --------------------------------------------------------------------------------------------------------


@given(
    tokens=st.floats(1e-3, 1e9),
    worst=st.lists(st.integers(1, 10**4), min_size=1, max_size=60).map(tuple),
    prompts=lengths,
    before=costs,
    reread=st.booleans(),
)
def test_a_portion_has_at_least_one_question_and_at_most_what_fits(tokens, worst, prompts, before, reread):
    rule = Portions(tokens, worst, prefix=0, reread=reread)
    n = rule.next(before, prompts)
    assert 1 <= n <= len(prompts)
    if n > 1:
        known = before or [rule.cost(max(prompts), worst)]
        expected, steps = sum(c.tokens for c in known) / len(known), max(c.steps for c in known)
        assert n * max(expected, 1) + STEP * steps <= tokens * (1 + 1e-9)
        assert not before or n <= GROWTH * len(before)


def test_in_bfloat16_a_portion_has_more_questions_only_where_the_processor_has_tiles(tiny, monkeypatch):
    def tokens(tiles: bool) -> float:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
        return Portions.of(tiny, worst=(8,) * 50, prefix=3, path="shared-prefix").tokens

    single = tokens(tiles=True)
    assert tokens(tiles=False) == single
    monkeypatch.setattr(LanguageModel, "dtype", torch.bfloat16)
    assert tokens(tiles=False) == single
    assert tokens(tiles=True) == TILES * single


def test_the_work_of_a_portion_is_that_of_slow_cores_in_less_than_two_minutes(tiny):
    threads, parameters = torch.get_num_threads(), sum(p.numel() for p in tiny.model.parameters())
    vocabulary = tiny.model.get_output_embeddings().weight.numel()
    assert not tiny.model.config.tie_word_embeddings
    rule = Portions.of(tiny, worst=(8,) * 50, prefix=3, path="shared-prefix")
    decoded = parameters - vocabulary
    assert rule.tokens == pytest.approx(TARGET_S * OPERATIONS_PER_S["cpu"] * threads / (2 * decoded))
    assert rule.reading == pytest.approx((decoded - vocabulary) / decoded)
    assert TARGET_S < 120
    # Gemma 3 270M on two slow cores, prompts of 150 tokens, 50 answers of 3.5 tokens on average, of which 160 may be, and
    # of each question one is: one question, then three times as many as before, then as many as these read and decode.
    gemma = Portions(TARGET_S * 2e10 * 2 / (2 * 268e6), worst=(160,) * 50, prefix=0, reading=0.37)
    before, sizes = [], []
    while len(before) < 256:
        sizes.append(gemma.next(before, [150] * (256 - len(before))))
        before += [gemma.cost(150, [3] * 49 + [160])] * sizes[-1]
    assert sizes[:4] == [1, 3, 12, 13]
    assert set(sizes[3:-1]) == {13}


def test_where_the_longest_answers_alone_take_all_the_time_there_is_a_question_at_a_time():
    rule = Portions(tokens=1000, worst=(100,) * 10, prefix=0)
    assert rule.next([Cost(10, steps=1000 // STEP + 1)] * 20, [5] * 20) == 1
    assert rule.next([Cost(10, steps=10)] * 20, [5] * 100) == 60


@pytest.mark.parametrize(("prompt", "new_tokens", "m"), [(800, 12, 50), (100, 48, 50), (100, 32, 50)])
def test_a_small_model_has_one_portion_a_shard(prompt, new_tokens, m):
    parameters = sum(p.numel() for p in LanguageModel.load(bundled("base"), device="cpu").model.parameters())
    rule = Portions(TARGET_S * 2e10 / (2 * parameters), worst=(new_tokens,) * m, prefix=0)
    assert rule.next([], [prompt] * 256) == 256


def test_a_sequence_that_is_read_again_for_each_token_costs_more():
    once, again = (Portions(1e6, (1,), prefix=40, reread=r) for r in (False, True))
    assert once.cost(100, [10, 5]) == Cost(60 + 15, 10)
    assert again.cost(100, [10, 5]) == Cost(100 + 10 * 105 + 5 * 102.5, 10)


def test_a_prompt_costs_less_than_answers_as_it_needs_no_output_layer():
    assert Portions(1e6, (1,), prefix=40, reading=0.5).cost(100, [10, 5]) == Cost(30 + 15, 10)


# ---- what a run keeps ------------------------------------------------------------------------------------------------


def slow_machine(patch: pytest.MonkeyPatch) -> None:
    """A shard has several portions, and nothing is analysed."""
    patch.setattr(portions_module, "OPERATIONS_PER_S", {"cpu": 3.6e5})
    patch.setattr("experiments.pipeline.run_study.analyse", lambda *_, **__: None)
    patch.setattr("experiments.pipeline.run_study.write_study", lambda *_: None)


@pytest.fixture
def portioned(study_dict, monkeypatch):
    """A study of one shard in several portions, with activations in prompts and answers."""
    slow_machine(monkeypatch)
    positions = ["last_prompt_token", "all_question_tokens", "after_2_tokens"]
    return study_dict | {
        "sampling": {"m": 20, "max_new_tokens": 6, "shard_size": 64, "max_rows": 16},
        "capture": {"positions": positions, "hooks": ["blocks.*.hook_resid_post", "blocks.1.attn.hook_z"]},
    }


class Stopping(Reporter):
    """Counts answers, and stops before the nth."""

    def __init__(self, after: int | None = None) -> None:
        self.count, self.after, self.done = 0, after, 0

    def sampling(self, cell, questions, done):  # noqa: ARG002
        self.done = done

    def answered(self, questions):
        self.count += questions
        if self.after is not None and self.count > self.after:
            raise KeyboardInterrupt


def sample(tmp_path: Path, study: dict, name: str, reporter: Reporter | None = None) -> Run:
    prepared = prepare_study(load_study(write_study(tmp_path, study), [f"name={name}"]))
    run_study(prepared, reporter or Reporter())
    return prepared.runs[0]


def stopped(tmp_path: Path, study: dict, after: int) -> tuple[Run, Path]:
    """A run that was stopped within a portion, and its partial file."""
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, study, "broken", Stopping(after))
    (run,) = prepare_study(load_study(write_study(tmp_path, study), ["name=broken"])).runs
    (partial,) = run.folder.glob("samples/*.partial.jsonl")
    return run, partial


def assert_same(one: Run, two: Run) -> None:
    pd.testing.assert_frame_equal(one.samples(), two.samples(), check_exact=True)
    for position in ("last_prompt_token", "all_question_tokens", "after_2_tokens", "last_prompt_token/attn_z"):
        a, b = (run.activations(position) for run in (one, two))
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_a_run_that_goes_on_repeats_one_portion_at_most_and_ends_with_the_same_bits(tmp_path, portioned):
    whole = sample(tmp_path, portioned, "whole")
    run, partial = stopped(tmp_path, portioned, after=30)
    sizes = [len(json.loads(line)) for line in partial.read_bytes().splitlines()]
    assert len(sizes) > 2
    assert sum(sizes) <= 30 < sum(sizes) + GROWTH * sum(sizes)
    again = Stopping()
    sample(tmp_path, portioned, "broken", again)
    assert again.done == sum(sizes)
    assert again.count == 48 - sum(sizes)
    assert_same(whole, run)
    assert [p.name for p in run.folder.glob("*/*partial*")] == []


def first(line: bytes) -> str:
    return next(iter(json.loads(line)))


def changed(line: bytes, **fields) -> bytes:
    portion = json.loads(line)
    portion[first(line)][0] |= fields
    return json.dumps(portion).encode() + b"\n"


def without_a_field(line: bytes) -> bytes:
    portion = json.loads(line)
    del portion[first(line)][0]["logprob"]
    return json.dumps(portion).encode() + b"\n"


DAMAGE = {
    "cut short": lambda lines: [*lines[:2], lines[2][:-20]],
    "cut just before its end": lambda lines: [*lines[:2], lines[2][:-1]],
    "not JSON": lambda lines: [*lines[:2], b"{]\n", *lines[2:]],
    "not UTF-8": lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]],
    "a number": lambda lines: [lines[0], b"7\n", *lines[1:]],
    "nested without end": lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[1:]],
    "zeros": lambda lines: [*lines[:2], b"\0" * 4096],
    "another question": lambda lines: [lines[0], lines[1].replace(first(lines[1]).encode(), b"q999")],
    "a portion twice": lambda lines: [lines[0], lines[0], lines[1]],
    "a portion is missing": lambda lines: [lines[0], *lines[2:]],
    "a field is missing": lambda lines: [lines[0], without_a_field(lines[1])],
    "count is a text": lambda lines: [lines[0], changed(lines[1], count="3")],
    "count is too large": lambda lines: [lines[0], changed(lines[1], count=21)],
    "no count": lambda lines: [lines[0], changed(lines[1], count=None)],
    "token ids are texts": lambda lines: [lines[0], changed(lines[1], token_ids=["a"])],
    "finish is unknown": lambda lines: [lines[0], changed(lines[1], finish="tired")],
    "empty": lambda _: [],
}


@pytest.fixture(scope="module")
def without_activations(checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    """A study that was run once to its end, as `whole`, and once until it was stopped, as `broken`."""
    folder = tmp_path_factory.mktemp("stopped")
    rows = [{"id": f"q{i}", "question": f"the {'red ' * (i % 7)} {i} ?", "answers": ["red"]} for i in range(48)]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = {
        "name": "small",
        "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
        "datasets": [{"kind": "jsonl", "path": str(folder / "colours.jsonl")}],
        "styles": ["concise"],
        "output": str(folder / "runs"),
        "sampling": {"m": 20, "max_new_tokens": 6, "max_rows": 16},
        "prompting": {"shots": 0, "exemplars": 0},
        "capture": {"positions": []},
        "probes": {"enabled": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        slow_machine(patch)
        sample(folder, study, "whole")
        stopped(folder, study, after=30)
    return folder, study


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_in_a_partial_file_is_asked_again(tmp_path, monkeypatch, without_activations, damage):
    slow_machine(monkeypatch)
    folder, study = without_activations
    shutil.copytree(folder / "runs", tmp_path / "runs")
    study = study | {"output": str(tmp_path / "runs")}
    (partial,) = tmp_path.rglob("*.partial.jsonl")
    partial.write_bytes(b"".join(DAMAGE[damage](partial.read_bytes().splitlines(keepends=True))))
    with pytest.raises(KeyboardInterrupt):  # stopped again, so that the healed file is appended to and read once more
        sample(tmp_path, study, "broken", Stopping(8))
    run = Run(partial.parents[1])
    assert len(run.partial(run.shard_keys()[0])) == len(partial.read_bytes().splitlines())
    sample(tmp_path, study, "broken")
    (whole,) = (Run(path) for path in (tmp_path / "runs" / "whole").iterdir() if path.is_dir())
    pd.testing.assert_frame_equal(whole.samples(), run.samples(), check_exact=True)


@pytest.mark.parametrize("damage", ["gone", "cut short", "of other questions"])
def test_a_portion_without_its_activations_is_asked_again(tmp_path, portioned, damage):
    whole = sample(tmp_path, portioned, "whole")
    run, partial = stopped(tmp_path, portioned, after=30)
    first_portion = len(json.loads(partial.read_bytes().splitlines()[0]))
    _, two, three, *_ = sorted(run.folder.glob("activations/*.partial-*.safetensors"))
    if damage == "gone":
        two.unlink()
    elif damage == "cut short":
        os.truncate(two, two.stat().st_size - 1)
    else:
        two.write_bytes(three.read_bytes())
    again = Stopping()
    sample(tmp_path, portioned, "broken", again)
    assert again.count == 48 - first_portion
    assert_same(whole, run)


def test_a_full_disk_loses_one_portion_and_is_one_line(tmp_path, portioned, monkeypatch):
    whole = sample(tmp_path, portioned, "whole")
    real, room = os.write, [5]

    def full(file, data):
        if len(data) > 100:
            room[0] -= 1
            if room[0] == 0:
                real(file, bytes(data)[:50])
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        message = r"disk full while writing .*partial\.jsonl; free some space .*; \d+ of 48 questions are saved, and"
        with pytest.raises(UserError, match=message):
            sample(tmp_path, portioned, "broken")
    run = sample(tmp_path, portioned, "broken")
    assert_same(whole, run)


def test_a_failed_check_keeps_no_portion(tmp_path, portioned, monkeypatch):
    def fails(*_):
        raise UserError("check failed")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.sample.run_checks.RunChecks.shard", fails)
        with pytest.raises(UserError, match="check failed; no question is saved yet"):
            sample(tmp_path, portioned, "broken")
    assert not list((tmp_path / "runs" / "broken").rglob("*.partial*"))


@pytest.mark.parametrize("kind", ["samples", "activations"])
@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_finished_shard_that_was_cut_short_is_named_and_made_again(tmp_path, portioned, kind, left, caplog):
    study = portioned | {"sampling": portioned["sampling"] | {"shard_size": 16}}
    whole = sample(tmp_path, study, "whole")
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "broken")
    run = Run(tmp_path / "runs" / "broken" / whole.name)
    file = sorted((run.folder / kind).iterdir())[1]
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    again = Stopping()
    with caplog.at_level(logging.WARNING):
        sample(tmp_path, study, "broken", again)
    assert f"{file} was cut short, so what it held is made again" in caplog.text
    assert again.count == 16
    assert_same(whole, run)


def test_enumerated_answers_are_kept_in_portions_too(tmp_path, portioned):
    exact = {"sampling": {"exact": {"epsilon": 0.1, "row_budget": 30}, "max_new_tokens": 3}}
    study = portioned | exact | {"capture": {"positions": ["last_prompt_token"]}}
    whole = sample(tmp_path, study, "whole")
    _, partial = stopped(tmp_path, study, after=20)
    assert partial.read_bytes()
    again = Stopping()
    run = sample(tmp_path, study, "broken", again)
    assert again.count < 48
    pd.testing.assert_frame_equal(whole.samples(), run.samples(), check_exact=True)


def test_no_draw_depends_on_being_the_first_of_a_process(tiny, monkeypatch):
    """The first pass of a decoder shows all logits, later ones what they are computed from (`output_layer.py`)."""
    from semcal.sampling.records import Prompt, Sampling

    drawn = []
    monkeypatch.setattr("semcal.sampling.engine.draw", record(drawn, Sampler.sample.__globals__["draw"]))
    monkeypatch.setattr("semcal.sampling.decoding.output_layer.LARGE", 1)
    sampler = Sampler(tiny.model, Sampling(m=3, max_new_tokens=2), tiny.stop_rule(()), device=tiny.device, prefix=())
    list(sampler.sample([Prompt("a", (0, 5, 6)), Prompt("b", (0, 7))]))
    assert drawn
    assert set(drawn) == {"HiddenScores"}


def record(seen, draw):
    def drawing(logits, *rest):
        seen.append(type(logits).__name__)
        return draw(logits, *rest)

    return drawing


# ---- activations in parts --------------------------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_of_the_questions(tmp_path):
    rng = np.random.default_rng(0)

    def part(keys: str, rows: list[int]) -> Activations:
        n = sum(rows)
        return Activations(
            tuple(keys), ("l0",), rng.normal(size=(n, 1, 3 if n else 0)).astype(np.float32), rng.integers(0, 9, n),
            rng.integers(0, 9, n), np.array(rows), (), np.zeros((n, 0, 0, 0), dtype=np.float32),
        )  # fmt: skip

    one, two, none = part("ab", [2, 0]), part("cd", [1, 3]), part("e", [0])
    found = joined([one, two, none], "dbeac")
    assert found.keys == tuple("dbeac")
    assert found.rows.tolist() == [3, 0, 0, 2, 1]
    np.testing.assert_array_equal(found.values, np.concatenate([two.values[1:], one.values, two.values[:1]]))
    np.testing.assert_array_equal(
        found.token_ids, np.concatenate([two.token_ids[1:], one.token_ids, two.token_ids[:1]])
    )
    assert joined([none], "e").values.shape == (0, 1, 0)
    save(tmp_path / "x.safetensors", {"p": two})
    again = load(tmp_path / "x.safetensors", "cd")["p"]
    assert again.keys == two.keys
    np.testing.assert_array_equal(again.values, two.values)
