"""What our hooks read is what TransformerLens reads, which is what Hugging Face computes; for every architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from probes.activations.capture import ResidualCapture
from probes.activations.hooks import choose_hooks
from semcal import LanguageModel, UserError
from semcal.models.skeleton import bridge
from semcal.positions import BLOCK_HOOKS, LAST_PROMPT_TOKEN
from semcal.sampling.decoding.decoders import pad_left, prefill
from semcal.sampling.records import Prompt
from tests.conftest import CONFIGS, MORE_CONFIGS, ROPE, save_checkpoint

PROMPTS = [Prompt("long", (0, 5, 6, 7, 8, 9, 10)), Prompt("short", (0, 11, 12)), Prompt("middle", (0, 4, 9, 3, 7))]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_hooks_bridge_and_hugging_face_agree(architecture, tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    batch = pad_left(PROMPTS, 0, model.device)
    observer = ResidualCapture()
    logits, _ = prefill(model.model, batch, observer)
    ours = observer.take()
    assert ours.layers == ("blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3)))
    assert ours.token_ids.tolist() == [p.ids[-1] for p in PROMPTS]

    hooked = bridge(model)
    names = set(ours.layers)
    lens_logits, cache = hooked.run_with_cache(
        batch.ids, attention_mask=batch.mask, position_ids=batch.positions, names_filter=lambda name: name in names
    )
    for at, name in enumerate(ours.layers):
        lens = cache[name][:, -1].float()
        error = (torch.from_numpy(ours.values[:, at]) - lens).abs().max() / lens.abs().max()
        assert error <= 1e-5, (name, error)
    assert (lens_logits[:, -1] - logits).abs().max() / logits.abs().max() <= 1e-5

    # Hugging Face's own hidden states, the last of which has been through the final norm.
    hidden = model.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, output_hidden_states=True
    ).hidden_states
    for at in range(len(ours.layers) - 1):
        theirs = hidden[at][:, -1]
        assert (torch.from_numpy(ours.values[:, at]) - theirs).abs().max() / theirs.abs().max() <= 1e-5


@pytest.mark.parametrize("architecture", sorted(CONFIGS | MORE_CONFIGS))
def test_every_hook_is_what_the_bridge_reads_under_its_name(architecture, tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    batch = pad_left(PROMPTS, 0, model.device)
    every = {p.key: {LAST_PROMPT_TOKEN: range(len(p.ids))} for p in PROMPTS}  # at every token, padding left out
    observer = ResidualCapture(["blocks.*"], every)
    prefill(model.model, batch, observer)
    ours = observer.take()
    kinds = [kind for kind in BLOCK_HOOKS if architecture != "gpt-neox" or kind != "hook_resid_mid"]
    assert sorted((*ours.layers, *ours.head_layers)) == sorted(f"blocks.{i}.{k}" for i in range(3) for k in kinds)

    read = {*ours.layers, *ours.head_layers}
    _, cache = bridge(model).run_with_cache(
        batch.ids, attention_mask=batch.mask, position_ids=batch.positions, names_filter=lambda name: name in read
    )
    for names, values in ((ours.layers, ours.values), (ours.head_layers, ours.heads)):
        for at, name in enumerate(names):
            lens = cache[name][batch.mask.bool()].float()
            assert lens.shape == values[:, at].shape, name
            error = (torch.from_numpy(values[:, at]) - lens).abs().max() / lens.abs().max()
            assert error <= 1e-5, (name, error)


def test_what_a_model_has_not_is_refused_with_what_it_has(tmp_path):
    parallel = LanguageModel.load(save_checkpoint(tmp_path / "neox", "gpt-neox"), device="cpu").model
    with pytest.raises(UserError, match=r"'blocks\.\*\.hook_resid_mid' matches nothing in GPTNeoXForCausalLM, did you"):
        choose_hooks(parallel, ["blocks.*.hook_resid_mid"])
    for module in parallel.modules():
        if hasattr(module, "use_parallel_residual"):
            module.use_parallel_residual = False
    assert len(choose_hooks(parallel, ["blocks.*.hook_resid_mid"])) == 3
    with pytest.raises(
        UserError, match=r"'blocks\.3\.hook_resid_post' matches nothing .*'blocks\.[0-2*]\.hook_resid_post'"
    ):
        choose_hooks(parallel, ["blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"])


def test_a_component_that_is_scaled_before_it_is_added_is_not_offered():
    """Granite adds a multiple of what attention and MLP return: their outputs are not what the names promise."""
    config = GraniteConfig(**ROPE, num_key_value_heads=2, residual_multiplier=0.5)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert len(choose_hooks(model, ["blocks.*.hook_resid_post"])) == 3
    with pytest.raises(UserError, match=r"offer hook_resid_pre, attn\.hook_z, hook_resid_post$"):
        choose_hooks(model, ["blocks.*.hook_attn_out"])


def test_the_bridge_shares_parameters_and_leaves_the_model_alone(tiny):
    before = {name: type(module) for name, module in tiny.model.named_modules()}
    hooked = bridge(tiny)
    assert {name: type(module) for name, module in tiny.model.named_modules()} == before
    pointers = {p.data_ptr() for p in tiny.model.parameters()}
    assert {p.data_ptr() for p in hooked.original_model.parameters()} <= pointers
    assert tiny.model.config._attn_implementation != "eager"


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_padding_does_not_change_what_is_read(architecture, tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    observer = ResidualCapture()
    together, _ = prefill(model.model, pad_left(PROMPTS, 0, model.device), observer)
    padded = observer.take()
    for at, prompt in enumerate(PROMPTS):
        alone, _ = prefill(model.model, pad_left([prompt], 0, model.device), observer)
        seen = observer.take()
        assert abs(seen.values[0] - padded.values[at]).max() <= 1e-5 * abs(seen.values).max()
        torch.testing.assert_close(alone[0], together[at], rtol=1e-4, atol=1e-5)
