"""Activations on disk: half precision, layers one by one, ragged rows, and refusals of what is of another run."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from semcal import Run, UserError
from semcal.runs import stored_activations
from semcal.runs.digests import DIGESTS
from semcal.runs.run import shards
from semcal.runs.stored_activations import Activations
from semcal.semantics.collapsing.alias_table import Aliases

LAYERS = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
PROMPTS = {"a": (7, 8, 9), "b": (7, 5), "c": (7, 6, 4, 3)}
ANSWERS = {"a": [(20, 21), (22,)], "b": [(23, 24, 25)], "c": [(26,)]}


def found(keys, places, *, rng, width=4):
    """Random activations at places {key: indices in prompt and most frequent answer}."""
    rows = [len(places[k]) for k in keys]
    at = [(k, i) for k in keys for i in places[k]]
    ids = [(*PROMPTS[k], *ANSWERS[k][0])[i] for k, i in at]
    return Activations(
        keys=tuple(keys),
        layers=LAYERS,
        values=rng.normal(size=(len(at), len(LAYERS), width)).astype(np.float32),
        token_ids=np.array(ids, dtype=np.int64),
        token_index=np.array([i for _, i in at], dtype=np.int64),
        rows=np.array(rows),
        head_layers=("blocks.0.attn.hook_z",),
        heads=rng.normal(size=(len(at), 1, 2, 3)).astype(np.float32),
    )


@pytest.fixture
def written(tmp_path):
    """A run of three questions in two shards, and what was written at each position, by shard."""
    run, rng = Run(tmp_path / "run"), np.random.default_rng(0)
    run.write_config({"study": "s"})
    parts = shards("key", list(PROMPTS), 2)
    run.write_manifest({"shards": [s.key for s in parts], "positions": ["x"], "tokenizer_hash": "t"})
    run.write_prompt_ids(list(PROMPTS.values()))
    run.write_questions(pd.DataFrame({"id": list(PROMPTS)}), Aliases())
    last = {k: [len(ids) - 1] for k, ids in PROMPTS.items()}
    every = {k: list(range(1, len(ids))) for k, ids in PROMPTS.items()}
    after = {k: [len(PROMPTS[k]) + 1] if len(ANSWERS[k][0]) > 1 else [] for k in PROMPTS}
    wrote = []
    for part in parts:
        these = {
            "last_prompt_token": found(part.question_ids, last, rng=rng),
            "all_question_tokens": found(part.question_ids, every, rng=rng),
            "after_2_tokens": found(part.question_ids, after, rng=rng),
        }
        first = np.cumsum([0, *(len(ANSWERS[q]) for q in part.question_ids)])[:-1]
        run.write_activations(part.key, these, answer_rows=first)
        same = {"text": "x", "finish": "stop"}  # two samples a question
        rows = [
            same | {"question_id": q, "token_ids": list(i), "count": 2 // len(ANSWERS[q])}
            for q in part.question_ids
            for i in ANSWERS[q]
        ]
        run.write_samples(part.key, rows)
        wrote.append(these)
    return run, parts, wrote


def test_every_position_comes_back_with_its_tokens_and_answers(written):
    run, _, wrote = written
    stored = run.activations("last_prompt_token")
    np.testing.assert_array_equal(stored.values, np.concatenate([w["last_prompt_token"].values for w in wrote]))
    assert stored.token_ids.tolist() == [9, 5, 3]
    assert (stored.present.all(), stored.ragged, stored.samples.tolist()) == (True, False, [-1] * 3)
    every = run.activations("all_question_tokens")
    assert (every.rows.tolist(), every.token_ids.tolist(), every.ragged) == ([2, 1, 3], [8, 9, 5, 6, 4, 3], True)
    after = run.activations("after_2_tokens")
    assert after.present.tolist() == [True, True, False]
    assert np.isfinite(after.values).all()
    chosen = run.samples().iloc[after.samples]
    assert chosen["question_id"].tolist() == ["a", "b"]
    assert [ids[1] for ids in chosen["token_ids"]] == after.token_ids.tolist() == [21, 24]


def test_a_shard_or_a_run_without_the_position_is_empty_and_not_refused(written):
    run, parts, wrote = written
    nowhere = {q: [] for q in PROMPTS}
    rng = np.random.default_rng(1)
    for at in (1, 0):
        ids = parts[at].question_ids
        none = replace(found(ids, nowhere, rng=rng), values=np.zeros((0, 3, 0)), heads=np.zeros((0, 1, 0, 0)))
        run.write_activations(parts[at].key, {"after_2_tokens": none}, answer_rows=np.full(len(ids), -1))
        left = wrote[0]["after_2_tokens"].values if at else np.zeros((0, 3, 0))
        np.testing.assert_array_equal(run.activations("after_2_tokens").values, left)
    assert not run.activations("after_2_tokens").present.any()


def test_layer_by_layer_a_run_is_what_it_is_as_a_whole(written):
    run, _, _ = written
    whole, alone = run.activations("all_question_tokens"), []
    for layer in reversed(run.activations("all_question_tokens").layers):
        alone.insert(0, run.activations("all_question_tokens", layers=[layer]))
        assert alone[0].layers == (layer,)
    np.testing.assert_array_equal(np.concatenate([a.values for a in alone], 1), whole.values)
    heads = run.activations("last_prompt_token/attn_z", layers=["blocks.0.attn.hook_z"])
    assert heads.values.shape == (3, 1, 2, 3)
    assert run.activations("last_prompt_token/attn_z").layers == ("blocks.0.attn.hook_z",)


def test_half_precision_halves_the_file_and_returns_within_its_precision(written):
    run, parts, wrote = written
    path = run.folder / "activations" / f"{parts[0].key}.safetensors"
    before, size = run.activations("last_prompt_token").values, path.stat().st_size
    for part, these in zip(parts, wrote, strict=True):
        run.write_activations(part.key, these, dtype="float16", answer_rows=np.zeros(len(part.question_ids), dtype=int))
    after = run.activations("last_prompt_token").values
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, before.astype(np.float16).astype(np.float32))
    assert path.stat().st_size < size


def test_what_half_precision_cannot_hold_is_refused_naming_question_and_layer(written):
    run, parts, wrote = written
    at = wrote[0]["all_question_tokens"]
    values = at.values.copy()
    values[2, 1, 0] = 1e5
    with pytest.raises(
        UserError, match=r"'b': activations at blocks\.0\.hook_resid_post reach .* float16 holds at most 65,504; set"
    ):
        run.write_activations(parts[0].key, {"all_question_tokens": replace(at, values=values)}, dtype="float16")


@pytest.mark.parametrize(
    ("position", "layers", "message"),
    [
        ("last_promt_token", None, "nothing captured at position 'last_promt_token', did you mean 'last_prompt_token'"),
        ("after_2_tokens/attn_y", None, "did you mean 'after_2_tokens/attn_z'"),
        ("after_2_tokens", ["blocks.2.hook_resid_post"], "nothing captured at layer .*, did you mean 'blocks.1.hook"),
    ],
)
def test_what_was_not_captured_is_refused_with_the_nearest(written, position, layers, message):
    with pytest.raises(UserError, match=message) as caught:
        written[0].activations(position, layers)
    assert "\n" not in str(caught.value)


def test_activations_of_other_tokens_are_refused(written):
    run, _, _ = written
    run.write_prompt_ids([(7, 8, 9), (7, 5), (7, 6, 4, 2)])
    with pytest.raises(
        UserError, match=r"last_prompt_token of question 'c' was read at token id 3, but this run has 2"
    ):
        run.activations("last_prompt_token")
    run.write_prompt_ids([(7, 8, 9), (7, 5)])
    with pytest.raises(UserError, match="activations of 3 questions, but prompts of 2"):
        run.activations("last_prompt_token")


def test_activations_along_another_answer_are_refused(written):
    run, parts, _ = written
    rows = [{"question_id": q, "text": "x", "token_ids": [1, 2, 3], "count": 1} for q in ("a", "a", "b")]
    run.write_samples(parts[0].key, rows)
    with pytest.raises(UserError, match=r"after_2_tokens of question 'a' was read at token id 21, but this run has 2"):
        run.activations("after_2_tokens")


def test_activations_of_another_tokenizer_are_refused(written):
    run, _, _ = written
    run.write_manifest(run.manifest() | {"tokenizer_hash": "other"})
    with pytest.raises(UserError, match="captured with another tokenizer than this run's"):
        run.activations("last_prompt_token")


def rewritten(path, change, **facts):
    """The same file with other arrays and other facts."""
    with safe_open(path, framework="np") as stored:
        known, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata=known | facts)


def test_what_is_no_number_is_refused_naming_file_and_layer(written):
    run, parts, _ = written
    path = run.folder / "activations" / f"{parts[0].key}.safetensors"
    (run.folder / DIGESTS).unlink()
    rewritten(path, lambda tensors: tensors["last_prompt_token"].__setitem__((1, 1, 0), np.nan))
    said = rf"{path}: last_prompt_token holds NaN or infinity at {LAYERS[1]}, row 1; delete this file and `semcal run`"
    with pytest.raises(UserError, match=said):
        _ = run.activations("last_prompt_token").values
    run.activations("last_prompt_token").layer(LAYERS[0])  # what is not read is not checked


def test_a_shard_of_another_run_under_the_name_of_ones_own_is_refused(written):
    run, parts, _ = written
    path = run.folder / "activations" / f"{parts[0].key}.safetensors"
    (run.folder / DIGESTS).unlink()
    rewritten(path, lambda _: None, shard="00000-of-another-run")
    with pytest.raises(UserError, match="holds shard 00000-of-another-run, so it belongs to another run; delete this"):
        run.activations("last_prompt_token")


def test_activations_of_an_early_version_are_refused_with_the_remedy(written):
    run, parts, _ = written
    path = run.folder / "activations" / f"{parts[0].key}.safetensors"
    (run.folder / DIGESTS).unlink()
    rewritten(path, lambda tensors: tensors.pop("last_prompt_token.rows"))
    with pytest.raises(UserError, match="written by an early version of semcal; delete the run's folder and run its"):
        run.activations("last_prompt_token")


def test_stored_activations_carry_the_ids_of_their_questions(written):
    run, _, _ = written
    assert run.activations("last_prompt_token").questions == tuple(PROMPTS)


def test_each_shard_is_opened_once_and_then_once_per_layer(written, monkeypatch):
    run, parts, wrote = written
    opened = []
    real = stored_activations.safe_open
    monkeypatch.setattr(
        stored_activations, "safe_open", lambda file, **more: (opened.append(file), real(file, **more))[1]
    )
    stored = run.activations("last_prompt_token")
    assert len(opened) == len(parts)
    one = stored.layer(LAYERS[1])
    assert len(opened) == 2 * len(parts)
    np.testing.assert_array_equal(one, np.concatenate([w["last_prompt_token"].values[:, 1] for w in wrote]))
    with pytest.raises(UserError, match=r"did you mean 'blocks.0.hook_resid_post'\?; captured are"):
        stored.layer("blocks.0.hook_resid_pst")


def test_files_have_the_mode_that_the_umask_gives(written):
    run, parts, wrote = written
    before = os.umask(0o027)
    try:
        run.write_activations(parts[0].key, wrote[0])
        run.write_manifest(run.manifest())
    finally:
        os.umask(before)
    for path in (run.folder / "activations" / f"{parts[0].key}.safetensors", run.folder / "manifest.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
