"""Checkpoints whose config.json says that they are quantised: what they need, and how their manifest describes them.

transformers loads them through the library of each method, and some are dequantised where the hardware cannot compute
with them. Nothing here is quantised that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from semcal.errors import UserError

# What each method needs on any hardware: (module to import, name on the package index).
_PACKAGES = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "gptq": (("optimum", "optimum"), ("gptqmodel", "gptqmodel")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "aqlm": (("aqlm", "aqlm[cpu,gpu]"),),
    "quanto": (("optimum", "optimum"), ("optimum.quanto", "optimum-quanto")),
    "quark": (("quark", "amd-quark"),),
    "eetq": (("kernels", "kernels"),),
    "higgs": (("flute", "flute-kernel"), ("fast_hadamard_transform", "fast_hadamard_transform")),
    "hqq": (("hqq", "hqq"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "torchao": (("torchao", "torchao"),),
    "vptq": (("vptq", "vptq"),),
    "spqr": (("spqr_quant", "spqr_quant[gpu]"),),
    "auto-round": (("auto_round", "auto-round"),),
    "fouroversix": (("fouroversix", "fouroversix"),),
    "fp_quant": (("fp_quant", "fp_quant"),),
    "sinq": (("sinq", "sinq"),),
}
# Keys of quantization_config that say how, and the words for them.
_DETAILS = {
    "bits": "{} bits",
    "w_bit": "{} bits",
    "nbits": "{} bits",
    "bnb_4bit_quant_type": "{}",
    "weights": "{}",
    "fmt": "{}",
    "format": "{}",
    "quant_type": "{}",
    "group_size": "groups of {}",
    "weight_block_size": "blocks of {}",
}


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """Its quantization_config, empty if there is none."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    return dict(found) if isinstance(found, dict) else dict(found.to_dict()) if found else {}


def method_of(settings: dict[str, Any]) -> str:
    """The method, "" if it is not said. bitsandbytes once said how instead of what."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    method = settings.get("quant_method") or ""
    return str(getattr(method, "value", method))


def describe(settings: dict[str, Any]) -> str:
    """How a checkpoint is quantised, e.g. "gptq (4 bits, groups of 128)"; "" if it is not."""
    if not settings:
        return ""
    bits = "4 bits" if settings.get("load_in_4bit") else "8 bits" if settings.get("load_in_8bit") else ""
    kept = (words.format(v) for key, words in _DETAILS.items() if (v := settings.get(key)) not in (None, "", {}, []))
    details = ", ".join(filter(None, (bits, *(text for text in kept if len(text) <= 40))))
    return method_of(settings) + (f" ({details})" if details else "")


def check_quantised(path: str, config: PretrainedConfig) -> None:
    """Check, before weights are loaded, that a quantised checkpoint can be.

    Raises:
        UserError: a method that transformers does not know, or whose packages are not installed.
    """
    settings = settings_of(config)
    if not settings:
        return
    method = method_of(settings)
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = sorted({name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING})
        said = f"by {method!r}, which transformers cannot load" if method else "and does not say how (quant_method)"
        raise UserError(
            f"{path} is quantised {said}; expected one of {', '.join(known)} in quantization_config of config.json, or "
            "use the model before quantisation"
        )
    lacking = [package for module, package in _PACKAGES.get(method, ()) if not _is_installed(module)]
    if lacking:
        raise UserError(
            f"{path} is quantised by {describe(settings)}, which needs {' and '.join(lacking)}; pip install "
            f"{' '.join(repr(p) if '[' in p else p for p in lacking)}, or use the model before quantisation"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing, or it is half-loaded
        return False


@contextmanager
def told_apart(path: str, config: PretrainedConfig | None) -> Iterator[None]:
    """A context for loading: what fails for a quantised checkpoint is told as such.

    Raises:
        UserError: its library, or the hardware, cannot load it.
    """
    settings = {} if config is None else settings_of(config)
    try:
        yield
    except (SafetensorError, FileNotFoundError, UserError):  # of any checkpoint
        raise
    except Exception as error:
        if not settings:
            raise
        text = " ".join(str(error).split())
        text = text if len(text) <= 200 else text[:200].rpartition(" ")[0] + " …"
        raise UserError(
            f"{path} is quantised by {describe(settings)} and cannot be loaded here ({text or type(error).__name__}); "
            "use the model before quantisation, or a machine that it runs on"
        ) from error


def check_scales(path: str, config: PretrainedConfig) -> None:
    """Check that all 8-bit floats in a local folder have a scale, without which transformers takes them as they are.

    Raises:
        UserError: one has none.
    """
    if method_of(settings_of(config)) not in ("fp8", "mxfp8"):
        return
    kinds: dict[str, str] = {}
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            kinds |= {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    scaled = {key.rpartition(".")[0] for key in kinds if "scale" in key.rpartition(".")[2]}
    bare = sorted(k for k, kind in kinds.items() if kind.startswith("F8_E") and k.rpartition(".")[0] not in scaled)
    bare = [key for key in bare if "scale" not in key.rpartition(".")[2]]
    if bare:
        raise UserError(
            f"{path}: {len(bare)} parameters are 8-bit floats without a scale in the file ({bare[0]}); restore the file"
        )


def check_numbers(path: str, config: PretrainedConfig) -> None:
    """Check that a local folder without quantised layers has no parameters of whole numbers: transformers would take
    them for the values themselves.

    Raises:
        UserError: one has.
    """
    if settings_of(config):
        return
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                kind = weights.get_slice(key).get_dtype()
                if key.endswith(".weight") and kind[0] in "IU":
                    raise UserError(
                        f"{path}: {key} holds whole numbers ({kind}), and config.json has no quantization_config that "
                        "says what they stand for; restore config.json"
                    )


def forget_quantiser(model: PreTrainedModel) -> None:
    """Of a model that was dequantised: without this, saving it would quantise it again, unmarked."""
    conversions = getattr(model, "_weight_conversions", None) or []
    for conversion in conversions:
        if operations := getattr(conversion, "operations", None):
            conversion.operations = [o for o in operations if getattr(o, "hf_quantizer", None) is None]
    kept = [c for c in conversions if getattr(c, "operations", None) != []]
    vars(model)["_weight_conversions"] = kept


def is_packed(key: str, model: PreTrainedModel) -> bool:
    """Whether a parameter of a file is a part of a quantised parameter of the model, such as its scales."""
    parts = key.split(".")
    for at in range(len(parts) - 1, 1, -1):
        try:
            owner = model.get_submodule(".".join(parts[:at]))
        except AttributeError:
            continue
        return not any(owner.children())
    return False


@torch.no_grad()
def check_finite_buffers(path: str, model: PreTrainedModel) -> None:
    """
    Raises:
        UserError: NaN or infinity among the buffers, in which quantised layers keep their scales.
    """
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point() and buffer.numel() and not bool(buffer.float().isfinite().all()):
            raise UserError(f"{path}: {key} holds NaN or infinity; restore the checkpoint: it is damaged")
