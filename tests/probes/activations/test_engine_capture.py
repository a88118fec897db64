"""Activations read in another process are kept as those seen here are, and refused where they would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.sample.vllm_cell import check_layers
from probes.activations.capture import ResidualCapture
from probes.activations.engine_capture import EngineCapture, readable_layers
from semcal import UserError
from semcal.errors import NonFiniteError
from semcal.sampling.decoding.paths import observe_all
from semcal.sampling.records import Prompt

PROMPTS = [Prompt("a", (0, 3, 4, 5, 6)), Prompt("b", (0, 7, 8, 9, 10, 11))]
WHERE = {
    "a": {"last_prompt_token": [4], "last_question_token": [2], "question_mean": [1, 2], "all_question_tokens": [1, 2]},
    "b": {"last_prompt_token": [5], "last_question_token": [3], "question_mean": [2, 3], "all_question_tokens": ()},
}
LAYERS = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


def read_by(model, capture: EngineCapture) -> EngineCapture:
    """As an engine would: every place by itself."""
    for prompt in PROMPTS:
        places = capture.places(prompt.key)
        each = ResidualCapture(LAYERS, {prompt.key: {"all_question_tokens": places}})
        observe_all(model.model, model.device, [prompt], each, padded=False)
        seen = each.take([prompt.key], "all_question_tokens")
        capture.keep(prompt.key, seen.values, seen.token_ids)
    return capture


@pytest.mark.parametrize(
    "position", ["last_prompt_token", "last_question_token", "question_mean", "all_question_tokens"]
)
def test_every_position_is_kept_as_it_is_where_the_model_is_watched_here(tiny, position):
    plain = ResidualCapture(LAYERS, WHERE)
    observe_all(tiny.model, tiny.device, PROMPTS, plain, padded=False)
    theirs, ours = (
        plain.take(["b", "a"], position),
        read_by(tiny, EngineCapture(LAYERS, WHERE)).take(["b", "a"], position),
    )
    assert (ours.keys, ours.layers, ours.head_layers) == (theirs.keys, theirs.layers, theirs.head_layers)
    for name in ("token_ids", "token_index", "rows"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
    assert ours.heads.shape == theirs.heads.shape
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-6)
    assert ours.values.dtype == np.float32


def test_what_is_not_finite_or_does_not_fit_names_question_and_layer():
    capture = EngineCapture(LAYERS, WHERE, "float16")
    values = np.zeros((3, 3, 8), np.float32)
    values[1, 2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"question 'a': activations at blocks.2.hook_resid_post are NaN"):
        capture.keep("a", values, np.zeros(3, np.int64))
    values[1, 2, 3] = 70_000
    with pytest.raises(UserError, match=r"blocks.2.hook_resid_post reach 70,000, and float16 holds"):
        capture.keep("a", values, np.zeros(3, np.int64))


def test_a_question_that_is_forgotten_is_not_there(tiny):
    capture = read_by(tiny, EngineCapture(LAYERS, WHERE))
    capture.forget(["a"])
    with pytest.raises(KeyError):
        capture.take(["a"], "last_prompt_token")
    assert capture.take(["b"], "last_prompt_token").rows.tolist() == [1]


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid"])
def test_a_hook_that_vllm_does_not_show_is_refused_with_the_remedy(name):
    assert readable_layers(LAYERS) == LAYERS
    with pytest.raises(UserError, match=rf"{name} is not captured in vLLM.*set capture.hooks to"):
        readable_layers([*LAYERS, name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_that_is_another_is_refused_and_the_layer_is_named(tiny, dtype):
    """As a logit lens would be that forgot the second part of the stream, or one layer too early."""
    plain = read_by(tiny, EngineCapture(LAYERS, WHERE)).take(["a", "b"], "last_prompt_token")
    apart: dict[str, float] = {}
    check_layers(plain, plain, dtype, apart)
    assert max(apart.values()) < 1e-6
    off = EngineCapture(LAYERS, WHERE)
    for prompt in PROMPTS:
        values, ids = read_by(tiny, EngineCapture(LAYERS, WHERE))._read[prompt.key]
        values = values.copy()
        values[:, 2] -= values[:, 1]
        off.keep(prompt.key, values, ids)
    with pytest.raises(UserError, match=r"activations at blocks.2.hook_resid_post differ between vLLM and plain"):
        check_layers(off.take(["a", "b"], "last_prompt_token"), plain, dtype, {})


def test_another_token_at_the_position_is_refused(tiny):
    plain = read_by(tiny, EngineCapture(LAYERS, WHERE)).take(["a", "b"], "last_prompt_token")
    other = EngineCapture(LAYERS, WHERE)
    for prompt in PROMPTS:
        values, ids = read_by(tiny, EngineCapture(LAYERS, WHERE))._read[prompt.key]
        other.keep(prompt.key, values, ids + 1)
    with pytest.raises(UserError, match="activations of other tokens"):
        check_layers(other.take(["a", "b"], "last_prompt_token"), plain, torch.float32, {})
