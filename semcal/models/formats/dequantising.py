"""Quantised weights turned into plain ones while a checkpoint is loaded, in the dtype asked for.

On a CPU the kernels of most methods compute in bfloat16, or are compiled for minutes first; and LLM.int8 rounds what a
layer reads in a way that depends on the other rows of a batch, on any device. Plain weights have neither fault. What is
computed is the model with the values that its file holds; activations are not rounded.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from accelerate.hooks import add_hook_to_module
from torch.nn.parameter import Parameter
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import _create_accelerate_new_hook, dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from semcal.errors import UserError
from semcal.models.formats.quantisation_settings import method_of, settings_of

# By transformers, as it reads them, but for compressed-tensors in several ways.
_AS_READ = ("fp8", "mxfp8", "mxfp4", "metal", "compressed-tensors")
# Here, as they are read; no package is needed. Known layouts of each.
PACKED = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
LEAVES = ("qweight", "qzeros", "scales", "g_idx")  # the parameters of one layer
_AFTERWARDS = ("bitsandbytes", "torchao")
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight columns lies in a word
_SAME = 0.2  # relative; a layer that rounds what it reads to four bits differs by 0.1, a wrong one by more than 1


def is_dequantised(config: PretrainedConfig, device: torch.device | None, *, merged: bool = False) -> bool:
    """Whether a quantised checkpoint is dequantised where it is loaded.

    Args:
        device: None spreads it over GPUs.
        merged: Whether an adapter is merged into it, which needs plain weights.
    """
    settings = settings_of(config)
    method = method_of(settings)
    if method not in (*_AS_READ, *PACKED, *_AFTERWARDS):
        return False
    on_gpu = device is None or device.type == "cuda"
    return merged or not on_gpu or (method == "bitsandbytes" and bool(settings.get("load_in_8bit")))


@contextmanager
def as_read(config: PretrainedConfig) -> Iterator[None]:
    """A context for loading in which transformers dequantises the weights that it reads, as far as that can be then.

    Raises:
        UserError: a layout of GPTQ or AWQ that is not known.
    """
    settings = settings_of(config)
    method = method_of(settings)
    if method in _AS_READ and not _in_several_ways(settings):
        holder = config if getattr(config, "quantization_config", None) else config.get_text_config(decoder=True)
        holder.quantization_config = settings | {"dequantize": True}
    if method not in PACKED:
        yield
        return
    layout = str(settings.get("checkpoint_format") or settings.get("version") or settings.get("format") or "")
    if layout and layout.lower() not in PACKED[method]:
        raise UserError(
            f"{config.name_or_path} is quantised by {method} in the layout {layout!r}, which is read on a GPU alone; "
            f"expected {' or '.join(PACKED[method])}, or use the model before quantisation"
        )
    with patch.dict(AUTO_QUANTIZER_MAPPING, {method: _PackedQuantizer}):
        yield


def _in_several_ways(settings: dict[str, Any]) -> bool:
    """Whether layers other than experts are packed in several ways, of which transformers reads all in the first."""
    groups = [group.get("targets") or () for group in (settings.get("config_groups") or {}).values()]
    return sum(not any(t.startswith("re:") and "experts" in t for t in targets) for targets in groups) > 1


def dequantise(path: str, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the layers that stayed quantised by plain ones, in place.

    Raises:
        UserError: a plain layer computes something else than the quantised one.
    """
    for name, module in list(model.named_modules()):
        if (weight := _whole(module)) is None:
            continue
        plain = _plain_layer(module, weight.to(dtype))
        if (apart := _apart(module, plain)) > _SAME:
            raise UserError(
                f"{path}: dequantised, {name} computes something else ({apart:.2g} of its size apart); install the "
                "version of its library that wrote it, or use the model before quantisation"
            )
        if hook := getattr(module, "_hf_hook", None):  # of a model on several GPUs: moves what it reads to its GPU
            add_hook_to_module(plain, _create_accelerate_new_hook(hook))
        model.set_submodule(name, plain)
    for mark in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(mark, None)
    vars(model)["is_quantized"] = False
    for config in (model.config, model.config.get_text_config(decoder=True)):
        vars(config).pop("quantization_config", None)
        vars(config).pop("_is_quantized", None)


def _whole(module: torch.nn.Module) -> torch.Tensor | None:
    """[out, in] the weight of a quantised layer in float32; None if it is a plain one, or none."""
    if hasattr(module, "quantization_scheme"):
        importlib.import_module("compressed_tensors.compressors").decompress_module(module)
        return module.get_parameter("weight").float()
    weight: Any = module._parameters.get("weight")
    kind = type(weight)
    if kind.__module__.startswith("bitsandbytes"):
        if kind.__name__ == "Params4bit":
            return _of_4_bits(weight.data.view(torch.uint8).flatten(), weight.quant_state)
        return dequantize_bnb_weight(weight, module.state).float()
    return _of_torchao(weight) if kind.__module__.startswith("torchao") else None


def _of_4_bits(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """[out, in] from the state of a layer of bitsandbytes. Its own function rounds to the dtype that was saved and, as
    of 0.50.2 on a CPU, takes wrong scales where a row is no multiple of its blocks."""
    scales = state.absmax
    if state.nested:
        scales = _scaled(state.state2.code[scales.int()], state.state2.absmax, state.state2.blocksize) + state.offset
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(state.shape)].int()
    return _scaled(state.code[codes], scales, state.blocksize).view(state.shape)


def _scaled(values: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    """[value] in float32, times the scale of its block."""
    return values.float() * scales.float().repeat_interleave(block)[: len(values)]


def _of_torchao(weight: Any) -> torch.Tensor:
    own = type(weight).dequantize
    if own is torch.Tensor.dequantize:
        raise UserError(
            f"torchao cannot dequantise its {type(weight).__name__}; use the model before quantisation, or a GPU"
        )
    single = {"output_dtype": torch.float32} if "output_dtype" in signature(own).parameters else {}
    return own(weight, **single).float()


def _plain_layer(module: Any, weight: torch.Tensor) -> torch.nn.Module:
    if isinstance(module, torch.nn.Embedding):
        return type(module).from_pretrained(weight, padding_idx=module.padding_idx)
    rows, columns = weight.shape
    plain: Any
    with torch.device("meta"):
        if getattr(module, "source_cls", None) is Conv1D:
            plain, weight = Conv1D(rows, columns), weight.T.contiguous()
        else:
            plain = torch.nn.Linear(columns, rows, bias=module.bias is not None)
    plain.weight = Parameter(weight, requires_grad=False)
    bias = module.bias if module.bias is not None else torch.zeros(rows)
    plain.bias = Parameter(bias.to(weight), requires_grad=False) if plain.bias is not None else None
    return plain


@torch.no_grad()
def to_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give all parameters the dtype asked for, but those that the model keeps in float32. What lies beside packed
    weights in a file, such as norms, transformers leaves as it is stored."""
    single = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            kept = any(module in name.split(".") for module in single)
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)


@torch.inference_mode()
def _apart(module: torch.nn.Module, plain: Any) -> float:
    """How far two layers are apart on two rows, relative to their size; 0 for a table, which has no arithmetic, and
    where the quantised layer cannot compute here."""
    if isinstance(plain, torch.nn.Embedding):
        return 0.0
    width = plain.nx if isinstance(plain, Conv1D) else plain.in_features
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(plain.weight)
    packed: Any = module._parameters.get("weight")
    asked = rows.half() if type(packed).__name__ == "Int8Params" else rows  # else it warns for each layer
    try:
        theirs = module(asked).float()
    except Exception:  # whatever its kernel makes of this device or size
        return 0.0
    ours = plain(rows).float()
    return float(((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)).nan_to_num(math.inf))


# ---- GPTQ and AWQ ----------------------------------------------------------------------------------------------------


class _Unpack(ConversionOps):
    """Plain weights from packed ones, of one layer, or of many that a further operation puts together."""

    def __init__(self, hf_quantizer: HfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = {}
        for start in {key.removesuffix(_leaf(key)) for key in input_dict}:
            parts = {leaf: input_dict[f"{start}{leaf}"] for leaf in LEAVES if f"{start}{leaf}" in input_dict}
            if lacking := [leaf for leaf in LEAVES[:3] if leaf not in parts]:
                raise ValueError(f"{kwargs.get('full_layer_name')} has no {' and no '.join(lacking)}")
            layers = zip(*(v if isinstance(v, list) else [v] for v in parts.values()), strict=True)
            dtype = kwargs["model"].get_parameter(kwargs["full_layer_name"]).dtype
            unpacked = [self._weight(dict(zip(parts, layer, strict=True))).to(dtype) for layer in layers]
            found[f"{start}weight"] = unpacked[0] if len(unpacked) == 1 else unpacked
        return found

    def _weight(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        settings = self.hf_quantizer.quantization_config
        unpack = unpack_awq if method_of(settings.to_dict()) == "awq" else unpack_gptq
        first = 0 if unpack is unpack_awq or getattr(settings, "format", "") == "gptq_v2" else 1
        return unpack(parts, int(getattr(settings, "bits", 4)), first)

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError


def _leaf(key: str) -> str:
    return next(leaf for leaf in LEAVES if key.endswith(leaf))


class _PackedQuantizer(HfQuantizer):
    """Dequantises GPTQ and AWQ as they are read. Their library, gptqmodel 7.7, computes in half precision on a CPU, and
    compiles its kernels when the first model is loaded."""

    requires_calibration = True
    serialized_names = {"weight": list(LEAVES)}  # noqa: RUF012
    is_serializable = is_trainable = True  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        quantization_config.dequantize = True

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": _Unpack}


def unpack_gptq(parts: dict[str, torch.Tensor], bits: int, first: int) -> torch.Tensor:
    """[out, in] the weight of a layer in float32.

    Args:
        parts: qweight [in * bits / 32, out] and qzeros [group, out * bits / 32], int32 words that are filled from their
            lowest bits; scales [group, out]; g_idx [in], the group of each input, absent if they are in order.
        bits: Of a value.
        first: What a stored zero point of 0 stands for.
    """
    values = _words(parts["qweight"].T, bits)  # [out, in]
    zeros, scales = _words(parts["qzeros"], bits).T + first, parts["scales"].T.float()  # [out, group]
    groups = parts.get("g_idx", torch.arange(values.shape[1]) // -(-values.shape[1] // scales.shape[1])).long()
    return (values - zeros[:, groups]) * scales[:, groups]


def unpack_awq(parts: dict[str, torch.Tensor], bits: int, first: int = 0) -> torch.Tensor:
    """[out, in] the weight of a layer in float32.

    Args:
        parts: qweight [in, out / 8] and qzeros [group, out / 8], int32 words of eight columns, of which those with even
            numbers come first; scales [group, out].
        bits: Of a value: 4.
        first: What a stored zero point of 0 stands for.
    """
    if bits != 4:
        raise ValueError(f"AWQ has 4 bits, not {bits}")

    def columns(packed: torch.Tensor) -> torch.Tensor:
        return _words(packed, bits).unflatten(-1, (-1, 8))[..., _AWQ_ORDER].flatten(-2)

    values, scales = columns(parts["qweight"]), parts["scales"].float()
    size = len(values) // len(scales)
    zeros = (columns(parts["qzeros"]) + first).repeat_interleave(size, 0)
    return ((values - zeros) * scales.repeat_interleave(size, 0)).T.contiguous()


def _words(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., value] whole numbers of some bits each from [..., word] of 32, in a row from the lowest bit."""
    at_once = math.lcm(32, bits)
    words = (packed.long() & 0xFFFFFFFF).unflatten(-1, (-1, at_once // 32))
    values = []
    for start in range(0, at_once, bits):
        word, shift = divmod(start, 32)
        value = words[..., word] >> shift
        if shift + bits > 32:
            value = value | (words[..., word + 1] << (32 - shift))
        values.append((value & (2**bits - 1)).int())
    return torch.stack(values, -1).flatten(-2)
