"""Quantised checkpoints on a CPU: plain weights with the values that the file holds, in the dtype asked for.

Expected values are computed here from the numbers that were packed. Real libraries write their own checkpoints where they
are installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GptOssConfig, LlamaConfig, PreTrainedModel

import semcal
from experiments.config.study import Study, parse
from experiments.pipeline.dry_run import dry_run
from semcal import LanguageModel, UserError
from semcal.models.formats.dequantising import is_dequantised
from semcal.models.formats.quantised import check_quantised
from semcal.models.skeleton import second_skeleton
from semcal.sampling.decoding.paths import SHARED, choose_path
from semcal.sampling.records import Prompt
from tests.conftest import save_checkpoint, word_tokenizer
from tests.hostile.test_adapters_alone import write
from tests.hostile.test_quantised import Weights, configure, each_linear, rewrite

IDS = torch.tensor([[0, 4, 9, 5, 7, 7], [0, 7, 3, 11, 2, 6]])
GROUP = 32


def save(folder: Path, config: Any = None) -> Path:
    """A random-init checkpoint whose layers can be packed in groups of 32."""
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, None
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.5 if "embed" in name or "lm_head" in name else 0.15)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def apart(model: LanguageModel, expected: PreTrainedModel) -> float:
    """Largest difference of log-probabilities, in nats."""
    ours, theirs = model.model(IDS).logits.log_softmax(-1), expected(IDS).logits.log_softmax(-1)
    return float((ours - theirs).abs().max())


def with_weights(folder: Path, values: Weights) -> PreTrainedModel:
    """The plain checkpoint in a folder with other values of some parameters."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(load_file(folder / "model.safetensors") | values)
    return model.eval()


# ---- GPTQ and AWQ, which need no library -----------------------------------------------------------------------------


def in_words(values: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """[..., word] of 32 bits from [..., value], bit by bit, lowest first."""
    if order:
        values = values.unflatten(-1, (-1, len(order)))[..., order].flatten(-2)
    stream = torch.stack([(values.long() >> b) & 1 for b in range(bits)], -1).flatten(-2).unflatten(-1, (-1, 32))
    words = (stream << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def rounded(weight: torch.Tensor, bits: int, groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[out, in] whole numbers, [out, group] scales and zero points (at least 1), and what they stand for."""
    count = int(groups.max()) + 1
    low, high = (torch.full((len(weight), count), s).scatter_reduce(
        1, groups.expand_as(weight), weight, how) for s, how in ((torch.inf, "amin"), (-torch.inf, "amax")))  # fmt: skip
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    values = (weight / scales[:, groups] + zeros[:, groups]).round().clamp(0, 2**bits - 1)
    return values, scales, zeros, (values - zeros[:, groups]) * scales[:, groups]


def gptq(folder: Path, bits: int = 4, *, shuffled: bool = False, layout: str = "gptq") -> Weights:
    """Pack the checkpoint in a folder as GPTQ does; returns the values of its weights."""
    expected: Weights = {}

    def pack(key: str, weight: torch.Tensor) -> Weights:
        owner, groups = key.removesuffix(".weight"), torch.arange(weight.shape[1]) // GROUP
        if shuffled:  # desc_act
            groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]
        values, scales, zeros, expected[key] = rounded(weight, bits, groups)
        return {
            f"{owner}.qweight": in_words(values, bits).T.contiguous(),
            f"{owner}.qzeros": in_words((zeros - int(layout == "gptq")).T, bits),
            f"{owner}.scales": scales.T.half().contiguous(),
            f"{owner}.g_idx": groups.int(),
        }

    rewrite(folder, each_linear(pack))
    configure(folder, {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": layout})
    return expected


def awq(folder: Path) -> Weights:
    expected: Weights = {}

    def pack(key: str, weight: torch.Tensor) -> Weights:
        owner, order = key.removesuffix(".weight"), (0, 2, 4, 6, 1, 3, 5, 7)
        values, scales, zeros, expected[key] = rounded(weight, 4, torch.arange(weight.shape[1]) // GROUP)
        return {
            f"{owner}.qweight": in_words(values.T, 4, order),
            f"{owner}.qzeros": in_words(zeros.T, 4, order),
            f"{owner}.scales": scales.T.half().contiguous(),
        }

    rewrite(folder, each_linear(pack))
    configure(folder, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"})
    return expected


PACKERS = {
    "gptq": gptq,
    "gptq, 2 bits": lambda f: gptq(f, 2),
    "gptq, 3 bits": lambda f: gptq(f, 3),
    "gptq, 8 bits": lambda f: gptq(f, 8),
    "gptq, shuffled": lambda f: gptq(f, shuffled=True),
    "gptq v2": lambda f: gptq(f, layout="gptq_v2"),
    "awq": awq,
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_packed_weights_are_those_that_were_packed(tmp_path, pack):
    plain = save(tmp_path / "plain")
    values = pack(save(tmp_path / "m"))
    model = LanguageModel.load(tmp_path / "m", device="cpu")
    assert "dequantised to float32 at load" in model.quantised
    assert apart(model, with_weights(plain, values)) < 1e-5
    assert not model.model.is_quantized
    second_skeleton(model, attention="eager")


def test_a_packed_checkpoint_is_saved_plain_sampled_fast_and_counted_whole(tmp_path):
    awq(save(tmp_path / "m"))
    model = LanguageModel.load(tmp_path / "m", device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert model.quantised == "awq (4 bits, groups of 32), dequantised to bfloat16 at load"
    model = LanguageModel.load(tmp_path / "m", device="cpu")
    prompts = [Prompt("a", (0, 4, 9, 5)), Prompt("b", (0, 7, 7, 3, 2))]
    assert choose_path(model.model, model.device, prompts).path == SHARED
    model.model.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    again = LanguageModel.load(tmp_path / "saved", device="cpu")
    assert again.quantised == ""
    assert torch.equal(again.model(IDS).logits, model.model(IDS).logits)


def without(leaf: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(
        folder, lambda w: {k: v for k, v in w.items() if f"layers.1.mlp.up_proj.{leaf}" not in k}
    )


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (without("qzeros"), r"1 packed layer is incomplete in the file \(model\.layers\.1\.mlp\.up_proj\)"),
        (without("scales"), r"1 packed layer is incomplete"),
        (without("qweight"), r"1 packed layer is incomplete"),
        (without(""), r"1 parameter not in the file \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        (
            lambda f: rewrite(f, lambda w: w | {"model.layers.1.mlp.up_proj.scales": torch.full((2, 96), torch.nan)}),
            "NaN or infinity",
        ),
        (lambda f: configure(f, {"quant_method": "awq", "bits": 4, "version": "gemv"}), "in the layout 'gemv'"),
    ],
    ids=["zeros", "scales", "values", "all", "nan", "layout"],
)
def test_a_packed_checkpoint_of_which_something_is_missing_is_refused(tmp_path, surgery, message):
    awq(save(tmp_path / "m"))
    surgery(tmp_path / "m")
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.load(tmp_path / "m", device="cpu")
    assert "\n" not in str(refused.value)


def test_an_adapter_goes_onto_a_packed_base(tmp_path):
    plain = save(tmp_path / "plain")
    values = gptq(save(tmp_path / "m"))
    with_weights(plain, values).save_pretrained(tmp_path / "whole")
    word_tokenizer().save_pretrained(tmp_path / "whole")
    expected = write(tmp_path / "adapter", tmp_path / "whole")(IDS).logits
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "m")}))
    model = LanguageModel.load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(model.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "device", "merged", "expected"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "cuda", False, True),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "cuda", False, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "cuda", True, True),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "mps", False, True),
        ({"quant_method": "gptq", "bits": 4}, "cuda", False, False),
        ({"quant_method": "gptq", "bits": 4}, "cpu", False, True),
        ({"quant_method": "hqq"}, "cpu", True, False),
        ({}, "cpu", False, False),
    ],
)
def test_what_is_dequantised_where(tmp_path, settings, device, merged, expected):
    config = AutoConfig.from_pretrained(
        configure(save_checkpoint(tmp_path / "m"), settings) if settings else save_checkpoint(tmp_path / "m")
    )
    assert is_dequantised(config, torch.device(device), merged=merged) is expected


def test_on_a_gpu_the_library_of_a_packed_checkpoint_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("semcal.models.formats.quantised._is_installed", lambda _: False)
    config = AutoConfig.from_pretrained(configure(save_checkpoint(tmp_path / "m"), {"quant_method": "gptq", "bits": 4}))
    check_quantised("m", config, dequantised=True)
    with pytest.raises(UserError, match="needs optimum and gptqmodel"):
        check_quantised("m", config)


# ---- a study ---------------------------------------------------------------------------------------------------------


def test_manifest_page_and_dry_run_know_what_is_in_memory(tmp_path):
    awq(save(tmp_path / "m"))
    study = {
        "name": "awq",
        "output": str(tmp_path / "runs"),
        "models": [{"path": str(tmp_path / "m"), "device": "cpu"}],
        "datasets": [{"kind": "atlas", "family": "facts", "n": 6}],
        "styles": ["concise"],
        "prompting": {"shots": 0},
        "sampling": {"m": 4, "max_new_tokens": 4},
        "probes": {"enabled": False},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 20},
    }
    said = "awq (4 bits, groups of 32), dequantised to float32 at load"
    (planned,) = dry_run(parse(Study, study, "awq"))
    assert planned.memory is not None
    size = sum(p.numel() for p in LanguageModel.load(tmp_path / "m", device="cpu").model.parameters())
    assert planned.memory["weights"] == 4 * size
    (run,) = semcal.run_study(study)
    assert run.manifest()["quantised"] == said
    assert said in (Path(run.folder) / "report.html").read_text()
    # On a GPU the same files would be computed with otherwise.
    manifest = run.manifest()
    manifest["computation"]["quantised weights"] = "awq (4 bits, groups of 32), kept so"
    run.write_manifest(manifest)
    next((Path(run.folder) / "samples").glob("*.parquet")).unlink()
    with pytest.raises(UserError, match=r"quantised weights awq \(4 bits, groups of 32\), kept so \(now awq"):
        semcal.run_study(study)


# ---- mxfp4, which needs no library -----------------------------------------------------------------------------------

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_experts_are_those_that_were_packed(tmp_path):
    config = GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=4, num_experts_per_tok=2, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    plain, folder, random = (
        save(tmp_path / "plain", config),
        save(tmp_path / "m", config),
        torch.Generator().manual_seed(0),
    )
    expected: Weights = {}

    def pack(weights: Weights) -> Weights:
        packed: Weights = {}
        for key, value in weights.items():
            if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
                packed[key] = value
                continue
            experts, columns, rows = value.shape  # [expert, in, out] in memory
            codes = torch.randint(16, (experts, rows, columns // 32, 32), generator=random)
            exponents = torch.randint(122, 125, (experts, rows, columns // 32), generator=random)
            expected[key] = (FP4[codes] * 2.0 ** (exponents - 127)[..., None]).flatten(2).transpose(1, 2).contiguous()
            packed[f"{key}_blocks"] = (codes[..., ::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
            packed[f"{key}_scales"] = exponents.to(torch.uint8)
        return packed

    rewrite(folder, pack)
    configure(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    model = LanguageModel.load(folder, device="cpu")
    assert model.quantised == "mxfp4, dequantised to float32 at load"
    assert apart(model, with_weights(plain, expected)) < 1e-5


# ---- with real libraries ---------------------------------------------------------------------------------------------


def fresh(folder: Path, how: Any) -> None:
    """A checkpoint that transformers quantises and saves with the library of the method."""
    plain = folder.with_name("plain")
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=how, device_map="cpu", dtype=torch.bfloat16)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def bitsandbytes_values(folder: Path) -> Weights:
    """From the numbers in the file alone."""
    stored, found = load_file(folder / "model.safetensors"), dict[str, torch.Tensor]()
    for key, value in stored.items():
        if f"{key}.absmax" in stored:
            state = json.loads(bytes(next(v for k, v in stored.items() if k.startswith(f"{key}.quant_state"))))
            scales = stored[f"{key}.absmax"].float()
            if f"{key}.nested_absmax" in stored:
                code, outer = stored[f"{key}.nested_quant_map"], stored[f"{key}.nested_absmax"]
                inner = code[stored[f"{key}.absmax"].long()]
                scales = (
                    inner * outer.repeat_interleave(state["nested_blocksize"])[: len(inner)] + state["nested_offset"]
                )
            codes = torch.stack([value.flatten() >> 4, value.flatten() & 15], 1).flatten().long()
            whole = stored[f"{key}.quant_map"][codes].view(-1, state["blocksize"]) * scales[:, None]
            found[key] = whole.view(state["shape"])
        elif (scale := key.removesuffix("weight") + "SCB") in stored:
            found[key] = value.float() * stored[scale].float()[:, None] / 127
    assert found
    return found


@pytest.mark.parametrize("kind", ["nf4", "nf4 twice", "fp4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bitsandbytes(tmp_path, kind, architecture):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    gpt2 = GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=256, tie_word_embeddings=False)
    plain = save(tmp_path / "plain", gpt2 if architecture == "gpt2" else None)
    how = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind[:3], bnb_4bit_use_double_quant=kind.endswith("twice")
        )
    )
    fresh(tmp_path / "m", how)
    values = bitsandbytes_values(tmp_path / "m")
    if architecture == "gpt2":
        values = {key: value.T for key, value in values.items()}
    kept = {
        k: v.float() for k, v in load_file(tmp_path / "m" / "model.safetensors").items() if v.dtype == torch.bfloat16
    }
    model = LanguageModel.load(tmp_path / "m", device="cpu")
    assert model.quantised.startswith("bitsandbytes (")
    assert model.quantised.endswith("dequantised to float32 at load")
    own = with_weights(plain, {})
    lacking = own.load_state_dict(kept | values, strict=False)
    assert not lacking.unexpected_keys
    assert apart(model, own) < 1e-4
    second_skeleton(model, attention="eager")
    prompts = [Prompt("a", (0, 4, 9, 5)), Prompt("b", (0, 7, 7, 3, 2))]
    assert choose_path(model.model, model.device, prompts).path == SHARED


def test_a_layer_on_several_gpus_keeps_its_hook(tmp_path):
    pytest.importorskip("bitsandbytes")
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from transformers import BitsAndBytesConfig

    from semcal.models.formats.dequantising import dequantise

    save(tmp_path / "plain")
    fresh(tmp_path / "m", BitsAndBytesConfig(load_in_8bit=True))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", device_map="cpu")
    layer = model.model.layers[1].mlp.up_proj
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    dequantise("m", model, torch.float32)
    plain = model.model.layers[1].mlp.up_proj
    assert type(plain) is torch.nn.Linear
    assert plain._hf_hook.execution_device == "cpu"


@pytest.mark.parametrize("lost", ["absmax", "SCB"])
def test_bitsandbytes_of_which_scales_are_missing_is_refused(tmp_path, lost):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    save(tmp_path / "plain")
    fresh(tmp_path / "m", BitsAndBytesConfig(load_in_8bit=lost == "SCB", load_in_4bit=lost != "SCB"))
    rewrite(tmp_path / "m", lambda w: {k: v for k, v in w.items() if not ("layers.1.mlp.up_proj" in k and lost in k)})
    with pytest.raises(UserError, match="1 packed layer is incomplete in the file") as refused:
        LanguageModel.load(tmp_path / "m", device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("activations", [False, True])
def test_torchao(tmp_path, activations):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    plain = save(tmp_path / "plain")
    fresh(
        tmp_path / "m",
        TorchAoConfig(Int8DynamicActivationInt8WeightConfig() if activations else Int8WeightOnlyConfig()),
    )
    stored, values = load_file(tmp_path / "m" / "model.safetensors"), dict[str, torch.Tensor]()
    for key, value in stored.items():
        if key.endswith("_weight_qdata"):
            name = key.replace("_weight_qdata", "weight")
            values[name] = value.float() * stored[key.replace("qdata", "scale")].float()
        elif value.dtype == torch.bfloat16 and not key.endswith("_scale"):
            values[key] = value.float()
    model = LanguageModel.load(tmp_path / "m", device="cpu")
    assert model.quantised.startswith("torchao")
    assert apart(model, with_weights(plain, values)) < 1e-4


def compressed(folder: Path, kinds: dict[str, str]) -> Weights:
    """Pack as compressed-tensors does.

    Args:
        kinds: How layers are packed whose names contain a word.
    """
    expected: Weights = {}

    def pack(key: str, weight: torch.Tensor) -> Weights:
        owner = key.removesuffix(".weight")
        kind = next((kind for word, kind in kinds.items() if word in key), "")
        if not kind:
            return {key: weight}
        if kind == "int4":
            scale = weight.unflatten(1, (-1, GROUP)).abs().amax(-1) / 7
            values = (weight / scale.repeat_interleave(GROUP, 1)).round().clamp(-8, 7)
            expected[key] = values * scale.repeat_interleave(GROUP, 1)
            shape = torch.tensor(weight.shape)
            return {
                f"{owner}.weight_packed": in_words(values + 8, 4),
                f"{owner}.weight_scale": scale,
                f"{owner}.weight_shape": shape,
            }
        most, dtype = (448, torch.float8_e4m3fn) if kind == "fp8" else (127, torch.int8)
        scale = weight.abs().amax(1, keepdim=True) / most
        values = (weight / scale if kind == "fp8" else (weight / scale).round()).to(dtype)
        expected[key] = values.float() * scale
        return {key: values, f"{owner}.weight_scale": scale}

    def group(word: str, kind: str) -> dict[str, Any]:
        weights = {
            "num_bits": 4 if kind == "int4" else 8,
            "type": "float" if kind == "fp8" else "int",
            "symmetric": True,
        }
        weights |= {"strategy": "group", "group_size": GROUP} if kind == "int4" else {"strategy": "channel"}
        asked = {"num_bits": 8, "type": weights["type"], "symmetric": True, "strategy": "token", "dynamic": True}
        names = {"int4": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}
        inputs = None if kind == "int4" else asked
        return {"targets": [f"re:.*{word}.*"], "weights": weights, "input_activations": inputs, "format": names[kind]}

    rewrite(folder, each_linear(pack))
    groups = {f"group_{i}": group(*item) for i, item in enumerate(kinds.items())}
    names = {g["format"] for g in groups.values()}
    configure(
        folder,
        {
            "quant_method": "compressed-tensors",
            "format": names.pop() if len(names) == 1 else "mixed-precision",
            "config_groups": groups,
            "ignore": ["lm_head"],
            "quantization_status": "compressed",
        },
    )
    return expected


@pytest.mark.parametrize(
    "kinds",
    [{"_proj": "int4"}, {"_proj": "int8"}, {"_proj": "fp8"}, {"mlp": "int4"}, {"mlp": "int4", "self_attn": "int8"}],
    ids=str,
)
def test_compressed_tensors(tmp_path, kinds):
    pytest.importorskip("compressed_tensors")
    plain = save(tmp_path / "plain")
    values = compressed(save(tmp_path / "m"), kinds)
    model = LanguageModel.load(tmp_path / "m", device="cpu")
    assert model.quantised.startswith("compressed-tensors")
    assert apart(model, with_weights(plain, values)) < 1e-4
