"""In bfloat16 and float16, of whatever depth, rounding is no error, and an error is no rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from experiments.sample.capturing import Captured
from experiments.sample.run_checks import activations_check
from probes.activations.capture import ResidualCapture
from semcal import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.sampling.checks import FAILED, PASSED
from semcal.sampling.decoding import decoders, tree_attention
from semcal.sampling.decoding.paths import SHARED, choose_path, may_be_padded, observe_all
from semcal.sampling.decoding.rounding import SINGLE, difference, in_single, in_single_precision, rounded_once_more
from semcal.sampling.records import Prompt
from tests.conftest import ROPE, save_checkpoint
from tests.experiments.conftest import questions_file, run_dict, study_dict  # noqa: F401
from tests.hostile.test_architectures import CAUSAL, random_model

pytestmark = pytest.mark.long

LOW = ["bfloat16", "float16"]
CPU = torch.device("cpu")


def prompts(seed: int, longest: int = 30) -> list[Prompt]:
    random = torch.Generator().manual_seed(seed)
    tails = [torch.randint(2, 64, (n,), generator=random).tolist() for n in (4 + seed % 5, longest)]
    return [Prompt(str(i), (0, 5, 9, 14, 7, 8, 21, 3, 12, *tail)) for i, tail in enumerate(tails)]


def load(folder, architecture, dtype, **settings):
    return LanguageModel.load(save_checkpoint(folder / "m", architecture, **settings), device="cpu", dtype=dtype).model


def deep():
    """Many layers and sharp distributions in bfloat16."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**ROPE | {"num_hidden_layers": 24}))
    for name, parameter in model.requires_grad_(False).named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=1.6 if "embed" in name or "lm_head" in name else 0.15)
    return model.eval().to(torch.bfloat16)


# ---- rounding is accepted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "gemma3", "mistral-window", "qwen2-window"])
def test_the_fast_path_is_chosen_whatever_the_prompts(tmp_path, architecture, dtype):
    """In float16, keys out of a sliding window had a bias of −∞, and rows that see none of a part were 0.5 nats off."""
    model = load(tmp_path, architecture, dtype)
    for seed in range(8):
        chosen = choose_path(model, CPU, prompts(seed))
        assert chosen.path == SHARED, chosen.why
        assert 0 < chosen.single < SINGLE / 10
        assert chosen.apart < chosen.limit / 1.5


def test_a_deep_model_is_sampled_by_the_fast_path_however_much_it_rounds():
    model = deep()
    found = [choose_path(model, CPU, prompts(seed)) for seed in range(3)]
    assert {chosen.path for chosen in found} == {SHARED}
    assert max(chosen.apart for chosen in found) > 0.5  # beyond any limit that follows from the dtype alone


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["mamba", "zamba2", "gpt-oss", "rwkv", "deepseek-v3"])
def test_any_architecture_is_compared_in_single_precision(name, dtype):
    model = random_model(CAUSAL[name]())
    expected = choose_path(model, CPU, prompts(0))
    found = choose_path(model.to(getattr(torch, dtype)), CPU, prompts(0))
    assert found.path == expected.path
    assert found.single is not None
    assert found.single < SINGLE / 10


@pytest.mark.parametrize("name", ["gpt-oss", "rwkv"])
def test_padding_is_judged_as_in_float32(name):
    model, ids = random_model(CAUSAL[name]()), prompts(0)[1].ids
    assert may_be_padded(model, CPU, ids) is (name == "gpt-oss")
    assert may_be_padded(model.to(torch.bfloat16), CPU, ids) is (name == "gpt-oss")


@pytest.mark.parametrize("dtype", LOW)
def test_every_check_of_a_run_passes(tmp_path, study_dict, dtype):  # noqa: F811
    study_dict["models"][0]["dtype"] = dtype
    (run,) = run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})
    checks = {check["name"]: check for check in run.manifest()["checks"]}
    assert {check["outcome"] for check in checks.values()} == {"passed"}
    assert "in single precision" in checks["equality with plain passes"]["why"]


def captured_by(model, kernels: str, asked, *, lost: float = 0.0):
    """What a model shows at its last prompt tokens; `lost` is the share of the first layer's stream that is left out of
    the last one's."""
    model.model.set_attn_implementation(kernels)
    capture = ResidualCapture(where={p.key: {LAST_PROMPT_TOKEN: (len(p.ids) - 1,)} for p in asked})
    observe_all(model.model, CPU, asked, capture, padded=False)
    found = capture.take([p.key for p in asked])
    found.values[:, -1] -= lost * found.values[:, 1]
    return found


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_activations_from_other_kernels_differ_by_rounding_and_a_lost_part_of_the_stream_does_not(
    tmp_path, architecture, dtype
):
    model = LanguageModel.load(save_checkpoint(tmp_path / "m", architecture), device="cpu", dtype=dtype)
    asked = prompts(0)
    keys, where = [p.key for p in asked], {p.key: {LAST_PROMPT_TOKEN: (len(p.ids) - 1,)} for p in asked}

    def check(found):
        plain, moved = ResidualCapture(where=where), ResidualCapture(where=where)
        model.model.set_attn_implementation("sdpa")
        observe_all(model.model, CPU, asked, plain, padded=False)
        with rounded_once_more(model.model):
            observe_all(model.model, CPU, asked, moved, padded=False)
        return activations_check(model, keys, Captured({LAST_PROMPT_TOKEN: found}, None, {}, where), plain, moved)

    assert check(captured_by(model, "eager", asked)).outcome == PASSED
    assert check(captured_by(model, "eager", asked, lost=0.5)).outcome == FAILED


# ---- errors are refused ----------------------------------------------------------------------------------------------


def other_window(monkeypatch, by):
    real = tree_attention.tree_attention

    def attend(*args, sliding_window=None, **options):
        return real(*args, sliding_window=None if sliding_window is None else sliding_window + by, **options)

    monkeypatch.setitem(tree_attention.AttentionInterface._global_mapping, tree_attention.NAME, attend)


def other_position(monkeypatch):
    """The tokens of an answer, but for the first, stand a place further."""
    real = decoders.TreeDecoder.extend

    def extend(self, tokens, slots, lengths, rows=None):
        self.tail_lengths = self.tail_lengths + 1
        try:
            return real(self, tokens, slots, lengths, rows)
        finally:
            self.tail_lengths = self.tail_lengths - 1

    monkeypatch.setattr(decoders.TreeDecoder, "extend", extend)


def lost_key(monkeypatch):
    """The last token of the shared prefix is forgotten."""
    real = decoders.TreeDecoder.share

    def share(self, prefix):
        real(self, prefix)
        for layer, (key, value) in self.store.prefix.items():
            self.store.prefix[layer] = (key[:, :-1].clone(), value[:, :-1].clone())

    monkeypatch.setattr(decoders.TreeDecoder, "share", share)


def others_past(monkeypatch):
    real = decoders.TreeDecoder.move
    monkeypatch.setattr(decoders.TreeDecoder, "move", lambda self, rows, to, source: real(self, rows, to, source + 1))


def other_layer(monkeypatch):
    """One weight of an early layer is off by 5 % where the model decodes, as where an adapter is forgotten."""
    real = decoders.TreeDecoder._forward

    def forward(self, tree, ids, positions):
        weight = self.model.get_submodule("model.layers.0.self_attn").v_proj.weight
        kept = weight.clone()
        weight.mul_(1.05)
        try:
            return real(self, tree, ids, positions)
        finally:
            weight.copy_(kept)

    monkeypatch.setattr(decoders.TreeDecoder, "_forward", forward)


WRONG = {
    "window-too-wide": partial(other_window, by=1),
    "window-too-narrow": partial(other_window, by=-1),
    "position": other_position,
    "lost-key": lost_key,
    "others-past": others_past,
    "adapter": other_layer,
}


@pytest.mark.parametrize("dtype", ["float32", *LOW])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_path_is_not_chosen_however_little_it_changes(tmp_path, monkeypatch, wrong, dtype):
    model = load(tmp_path, "mistral-window", dtype)
    WRONG[wrong](monkeypatch)
    for seed in range(4):
        chosen = choose_path(model, CPU, prompts(seed))
        assert chosen.path == "expanded"
        assert "differ by" in chosen.why


def test_a_position_that_is_off_is_seen_below_the_rounding_of_a_deep_model(monkeypatch):
    other_position(monkeypatch)
    found = [choose_path(deep(), CPU, prompts(seed)) for seed in range(2)]
    assert {chosen.path for chosen in found} == {"expanded"}


def test_what_goes_wrong_in_the_models_dtype_alone_is_seen(tmp_path, monkeypatch):
    real = decoders.TreeDecoder.extend

    def overflows(self, *args, **options):
        out = real(self, *args, **options)
        return out if out.dtype == torch.float32 else out * 1.5

    monkeypatch.setattr(decoders.TreeDecoder, "extend", overflows)
    chosen = choose_path(load(tmp_path, "llama", "float16"), CPU, prompts(0))
    assert chosen.path == "expanded"


def test_a_model_that_single_precision_does_not_fit_is_still_compared(tmp_path, monkeypatch):
    model = load(tmp_path, "llama", "bfloat16")
    monkeypatch.setattr(model, "is_quantized", True, raising=False)
    chosen = choose_path(model, CPU, prompts(0))
    assert (chosen.path, chosen.single) == (SHARED, None)
    others_past(monkeypatch)
    assert choose_path(model, CPU, prompts(0)).path == "expanded"


# ---- single precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek-v3", "mamba", "rwkv", "falcon-alibi"])
@torch.inference_mode()
def test_single_precision_is_that_of_the_model_in_float32_and_leaves_no_trace(name):
    model = random_model(CAUSAL[name]()).to(torch.bfloat16)
    ids = torch.tensor([[0, 5, 9, 14, 7, 8]])
    before, weights = model(ids, use_cache=False).logits, dict(model.named_parameters(remove_duplicate=False))
    with in_single_precision(model):
        single = model(ids, use_cache=False).logits
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]), use_cache=False)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[key] is weight for key, weight in weights.items())
    assert torch.equal(model(ids, use_cache=False).logits, before)
    wide = random_model(CAUSAL[name]()).to(torch.bfloat16).float()
    assert difference(wide(ids, use_cache=False).logits, single) < 1e-5
    assert single.dtype == torch.float32


def test_what_cannot_be_computed_in_single_precision_is_none(tmp_path):
    model = load(tmp_path, "llama", "bfloat16")

    def fails():
        raise RuntimeError("this attention knows bfloat16 only")

    assert in_single(model, fails) is None
    assert in_single(model.float(), lambda: 1.0) is None  # it is compared in float32 as it is
