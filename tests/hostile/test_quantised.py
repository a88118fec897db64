"""Quantised checkpoints: loaded as transformers loads them where that can be, with true numbers, or refused in one line.

Those of fp8 and BitNet need no further library; another one is registered here as a library would register its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from semcal import LanguageModel, UserError
from semcal.models.skeleton import second_skeleton
from semcal.sampling.decoding.rounding import remedy
from tests.conftest import save_checkpoint
from tests.hostile.test_adapters_alone import write

IDS = torch.tensor([[0, 4, 9, 5], [0, 7, 7, 3]])
Weights = dict[str, torch.Tensor]


def configure(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return folder


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def each_linear(pack: Callable[[str, torch.Tensor], Weights]) -> Callable[[Weights], Weights]:
    """Every weight of a linear layer in other parameters, and all else as it is."""

    def change(weights: Weights) -> Weights:
        changed: Weights = {}
        for key, value in weights.items():
            changed |= pack(key, value) if "_proj.weight" in key else {key: value}
        return changed

    return change


# ---- the library is not installed ------------------------------------------------------------------------------------

ABSENT = [
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"bitsandbytes \(8 bits\), which needs bitsandbytes; pip"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, r"bitsandbytes \(4 bits, nf4\), which needs bitsandbytes"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, r"pip install compressed-tensors, or use"),
    ({"quant_method": "aqlm"}, r"pip install 'aqlm\[cpu,gpu\]'"),
    ({"quant_method": "quanto", "weights": "int8"}, r"quanto \(int8\), which needs optimum and optimum-quanto"),
    ({"quant_method": "hqq"}, "needs hqq"),
    ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "needs torchao"),
    ({"quant_method": "eetq"}, "needs kernels"),
    ({"quant_method": "vptq"}, "needs vptq"),
    ({"quant_method": "auto-round", "bits": 4}, "needs auto-round"),
    ({"quant_method": "fbgemm_fp8"}, "is quantised by fbgemm_fp8 and cannot be loaded here .*GPU"),
    ({"quant_method": "marlin9"}, "is quantised by 'marlin9', which transformers cannot load; expected one of aqlm"),
    ({"bits": 4}, r"does not say how \(quant_method\); expected one of"),
]


@pytest.mark.parametrize(("settings", "message"), ABSENT)
def test_a_method_that_cannot_be_used_here_is_named_with_what_to_install(tmp_path, settings, message):
    folder = configure(save_checkpoint(tmp_path / "m"), settings)
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_look_at_prompts_says_it_too(tmp_path):
    folder = configure(save_checkpoint(tmp_path / "m"), ABSENT[0][0])
    with pytest.raises(UserError, match="which needs bitsandbytes"):
        LanguageModel.without_weights(folder)


# ---- fp8: dequantised where the hardware cannot compute with it ------------------------------------------------------

BLOCK = 16


def fp8(folder: Path, rest: torch.dtype | None = None) -> Path:
    """The checkpoint with its linear layers in 8-bit floats, one scale for a block, and all else in another dtype."""

    def in_blocks(key: str, value: torch.Tensor) -> Weights:
        rows, columns = value.shape
        blocks = value.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
        return {key: packed, f"{key}_scale_inv": scale}

    rewrite(folder, each_linear(in_blocks))
    if rest is not None:
        rewrite(
            folder, lambda w: {k: v.to(rest) if v.itemsize > 1 and "scale_inv" not in k else v for k, v in w.items()}
        )
    return configure(folder, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"})


def test_fp8_is_dequantised_with_its_scales_into_the_dtype_asked_for(tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(save_checkpoint(tmp_path / "m"))
    model = LanguageModel.load(fp8(tmp_path / "m"), device="cpu")
    assert model.dtype == torch.float32
    assert model.quantised == "fp8 (e4m3, blocks of [16, 16]), dequantised to float32 at load"
    apart = (model.model(IDS).logits - plain(IDS).logits).abs().max()
    assert 1e-4 < apart < 0.5  # three bits of mantissa
    weight, scaled = load_file(tmp_path / "m" / "model.safetensors"), model.model.state_dict()
    key = "model.layers.1.mlp.up_proj.weight"
    whole = weight[key].float() * weight[f"{key}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    torch.testing.assert_close(scaled[key], whole)
    second_skeleton(model, attention="eager")  # plain weights are left


def test_what_lies_beside_fp8_has_the_dtype_asked_for(tmp_path):
    model = LanguageModel.load(fp8(save_checkpoint(tmp_path / "m"), torch.bfloat16), device="cpu")
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert bool(model.model(IDS).logits.isfinite().all())


def test_a_dequantised_model_is_saved_as_it_is_in_memory(tmp_path):
    """transformers would quantise it again, output layer and all, without saying so in config.json."""
    model = LanguageModel.load(fp8(save_checkpoint(tmp_path / "m")), device="cpu")
    model.model.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    again = LanguageModel.load(tmp_path / "saved", device="cpu")
    assert again.quantised == ""
    assert torch.equal(again.model(IDS).logits, model.model(IDS).logits)


def lost_scales(folder: Path) -> None:
    rewrite(folder, lambda w: {k: v for k, v in w.items() if not ("layers.1." in k and k.endswith("scale_inv"))})


def lost_weight(folder: Path) -> None:
    rewrite(folder, lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj" not in k})


def more_layers(folder: Path) -> None:
    rewrite(
        folder, lambda w: w | {k.replace("layers.2.", "layers.3."): v.clone() for k, v in w.items() if "layers.2." in k}
    )


def nan_scale(folder: Path) -> None:
    rewrite(
        folder, lambda w: {k: v * float("nan") if "layers.1.mlp.up_proj.weight_scale" in k else v for k, v in w.items()}
    )


def no_settings(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"}))


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (lost_scales, r"7 parameters are 8-bit floats without a scale in the file \(model\.layers\.1\."),
        (lost_weight, r"1 parameter not in the file \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        (more_layers, "of the file not in the model|config.json has 3 layers, the file 4"),
        (nan_scale, "holds NaN or infinity"),
        (no_settings, r"of the file not in the model \(.*scale_inv"),
    ],
)
def test_fp8_of_which_something_is_missing_is_refused(tmp_path, surgery, message):
    folder = fp8(save_checkpoint(tmp_path / "m"))
    surgery(folder)
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_an_adapter_goes_onto_a_dequantised_base(tmp_path):
    fp8(save_checkpoint(tmp_path / "m"))
    LanguageModel.load(tmp_path / "m", device="cpu").model.save_pretrained(tmp_path / "plain")
    expected = write(tmp_path / "adapter", tmp_path / "plain")(IDS).logits
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(
            json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
            | {"base_model_name_or_path": str(tmp_path / "m")}
        )
    )
    model = LanguageModel.load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(model.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


# ---- a method that stays quantised in memory -------------------------------------------------------------------------


class Int8Linear(torch.nn.Module):
    """Rows of 8-bit integers, each with a scale that is a buffer, as in GPTQ."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.register_buffer("qweight", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(rows, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.qweight.float() * self.scales).T


@register_quantization_config("rows-int8")
class RowsConfig(QuantizationConfigMixin):
    def __init__(self, **_: Any) -> None:
        self.quant_method = "rows-int8"  # pyright: ignore[reportAttributeAccessIssue]


@register_quantizer("rows-int8")
class RowsQuantizer(HfQuantizer):
    is_serializable = is_trainable = False  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                with torch.device("meta"):
                    quantised = Int8Linear(module.out_features, module.in_features)
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, quantised)
        return model


def rows_int8(folder: Path) -> Path:
    def in_rows(key: str, value: torch.Tensor) -> Weights:
        scale, owner = value.abs().amax(1, keepdim=True) / 127, key.removesuffix(".weight")
        return {
            f"{owner}.qweight": (value / scale).round().to(torch.int8),
            f"{owner}.scales": scale,
            f"{owner}.qzeros": torch.zeros(4, dtype=torch.int32),  # packed, and read by another kernel
        }

    rewrite(folder, each_linear(in_rows))
    return configure(folder, {"quant_method": "rows-int8", "bits": 8})


@pytest.fixture
def kept(tmp_path) -> Path:
    return rows_int8(save_checkpoint(tmp_path / "m"))


def test_what_stays_quantised_is_loaded_and_sampled_as_it_is(kept, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(save_checkpoint(tmp_path / "plain"))
    model = LanguageModel.load(kept, device="cpu")
    assert model.quantised == "rows-int8 (8 bits), kept so"
    assert 1e-5 < (model.model(IDS).logits - plain(IDS).logits).abs().max() < 0.2
    assert model.output_size == 64
    with pytest.raises(UserError, match=r"stays quantised in memory \(rows-int8.*need plain weights"):
        second_skeleton(model, attention="eager")


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (lost_weight, r"2 parameters not in the file \(model\.layers\.1\.mlp\.up_proj"),
        (more_layers, "config.json has 3 layers, the file 4"),
        (
            lambda f: rewrite(f, lambda w: {k: v for k, v in w.items() if "up_proj.scales" not in k}),
            "3 parameters not in",
        ),
        (
            lambda f: rewrite(f, lambda w: w | {"model.layers.1.mlp.up_proj.scales": torch.full((48, 1), torch.nan)}),
            "NaN",
        ),
        (lambda f: rewrite(f, lambda w: {f"module.{k}": v for k, v in w.items()}), "data-parallel model"),
    ],
)
def test_what_stays_quantised_must_be_whole_too(kept, surgery, message):
    surgery(kept)
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.load(kept, device="cpu")
    assert "\n" not in str(refused.value)


def test_an_adapter_is_not_rounded_into_a_base_that_stays_quantised(kept, tmp_path):
    write(tmp_path / "adapter", save_checkpoint(tmp_path / "plain"), LoraConfig(r=2, target_modules=["q_proj"]))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(kept)}))
    with pytest.raises(
        UserError, match=r"its base model stays quantised in memory, and merging .* before quantisation"
    ):
        LanguageModel.load(tmp_path / "adapter", device="cpu")


def test_what_stays_quantised_and_is_not_sampled_alike_is_told_so(kept):
    """Not advised is a dtype that it has already."""
    model = LanguageModel.load(kept, device="cpu").model
    assert remedy(model) == "its weights are quantised in memory; use the model before quantisation"
    plain = LanguageModel.load(save_checkpoint(kept.parent / "plain"), device="cpu").model
    assert "float32" not in remedy(plain)
    assert "float32" in remedy(plain.bfloat16())
