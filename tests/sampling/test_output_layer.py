"""Tokens drawn from an output layer that was left out are those drawn from its logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from semcal.sampling.decoding.decoders import TreeDecoder
from semcal.sampling.decoding.output_layer import LARGE, HiddenScores, whole
from semcal.sampling.drawing import draw
from semcal.sampling.records import Prompt, Sampling

VOCABULARY = LARGE + 777  # no multiple of a block
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def scores(seed: int = 0, bias: bool = False) -> HiddenScores:
    made = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(9, 32, generator=made), torch.randn(VOCABULARY, 32, generator=made)
    return HiddenScores(hidden, weight, torch.randn(VOCABULARY, generator=made) if bias else None)


def settings(**other) -> Sampling:
    return Sampling(m=2, max_new_tokens=4, **other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("law", [{}, {"temperature": 0.5}, {"top_k": 50}, {"top_p": 0.9}])
def test_the_same_uniform_numbers_draw_the_same_tokens(bias, law):
    left_out = scores(bias=bias)
    rows, uniform = np.repeat(np.arange(9), 40), np.random.default_rng(1).random(360)
    expected = draw(whole(left_out), settings(**law), rows, uniform)
    tokens, logprobs, bad = draw(left_out, settings(**law), rows, uniform)
    assert (tokens == expected[0]).mean() > 0.99  # at an edge of two tokens, rounding decides
    same = tokens == expected[0]
    np.testing.assert_allclose(logprobs[same], expected[1][same], atol=1e-4)
    assert len(bad) == 0


def test_the_ends_of_the_unit_interval_are_possible_tokens():
    rows, uniform = np.array([0, 0]), np.array([0.0, np.nextafter(1.0, 0.0)])
    tokens, logprobs, _ = draw(scores(), settings(), rows, uniform)
    assert tokens[0] == 0
    assert tokens[1] < VOCABULARY
    assert np.isfinite(logprobs).all()


def test_logits_that_are_not_finite_are_reported_by_row():
    broken = scores()
    broken.hidden[4, 3] = torch.nan
    *_, bad = draw(broken, settings(), np.arange(9), np.full(9, 0.5))
    assert bad.tolist() == [4]


def of(kind: type[PreTrainedModel], config: type, **more) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config(**SMALL, **more)).eval()


def read_twice(model: PreTrainedModel) -> tuple[object, TreeDecoder]:
    decoder = TreeDecoder(model, torch.device("cpu"))
    decoder.share((5, 6))
    return decoder.read([Prompt("a", (5, 6, 7)), Prompt("b", (5, 6, 8, 9))], torch.tensor([0, 1]), None), decoder


def test_a_plain_output_layer_is_left_out_once_it_has_been_seen_to_be_plain():
    model = of(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
    found, _ = read_twice(model)
    assert isinstance(found, HiddenScores)
    with torch.inference_mode():
        plain = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    np.testing.assert_allclose(whole(found)[0], plain, atol=1e-5)
    with torch.inference_mode():  # and the model is as it was
        assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, VOCABULARY)


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [
        (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 0.5}),
        (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    ],
)
def test_what_happens_to_logits_after_the_output_layer_is_not_lost(kind, config, more):
    model = of(kind, config, **more)
    found, _ = read_twice(model)
    assert isinstance(found, torch.Tensor)
    with torch.inference_mode():
        plain = model(torch.tensor([[5, 6, 8, 9]])).logits[0, -1]
    np.testing.assert_allclose(found[1], plain, atol=1e-5)


def test_a_transformation_that_no_configuration_names_is_found_by_comparison():
    model = of(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
    model.get_output_embeddings().register_forward_hook(lambda *a: a[-1] * 1.5)
    found, decoder = read_twice(model)
    assert isinstance(found, torch.Tensor)
    assert decoder.output.head is None
