"""What our hooks read is what TransformerLens reads, which is what Hugging Face computes; for every architecture."""

from __future__ import annotations

import pytest
import torch

from probes.capture import ResidualCapture, layer_names
from semcal import LanguageModel
from semcal.models.bridge import bridge
from semcal.sampling import Prompt, pad_left, prefill
from tests.conftest import CONFIGS, save_checkpoint

PROMPTS = [Prompt("long", (0, 5, 6, 7, 8, 9, 10)), Prompt("short", (0, 11, 12)), Prompt("middle", (0, 4, 9, 3, 7))]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_hooks_bridge_and_hugging_face_agree(architecture, tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    batch = pad_left(PROMPTS, 0, model.device)
    observer = ResidualCapture()
    logits, _ = prefill(model.model, batch, observer)
    ours = observer.take()
    assert ours.layers == layer_names(3)
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
