"""Checkpoints whose config.json says that they are quantised: what they need, and whether they are whole.

transformers loads them through the library of each method, and most are dequantised (`dequantising`). Nothing here is
quantised that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from semcal.errors import UserError
from semcal.models.formats.dequantising import LEAVES, PACKED
from semcal.models.formats.quantisation_settings import describe, method_of, settings_of

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


def check_quantised(path: str, config: PretrainedConfig, *, dequantised: bool = False) -> None:
    """Check, before weights are loaded, that a quantised checkpoint can be.

    Args:
        dequantised: Whether it will be, which needs no package for some methods.

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
    if dequantised and method in PACKED:
        return
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
    """Check that all packed numbers in a local folder have their scales: transformers would take them as they are.

    Raises:
        UserError: one has none.
    """
    method = method_of(settings_of(config))
    if method not in ("fp8", "mxfp8", "bitsandbytes", *PACKED):
        return
    kinds: dict[str, str] = {}
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            kinds |= {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    if method in PACKED:
        owners = {key.rpartition(".")[0] for key in kinds if key.endswith((".qweight", ".qzeros"))}
        bare = {owner for owner in owners if not {f"{owner}.{leaf}" for leaf in LEAVES[:3]} <= kinds.keys()}
    elif method == "bitsandbytes":
        owners = {
            k.removesuffix(".weight") for k, kind in kinds.items() if k.endswith(".weight") and kind in ("U8", "I8")
        }
        bare = {owner for owner in owners if not {f"{owner}.SCB", f"{owner}.weight.absmax"} & kinds.keys()}
    else:
        scaled = {key.rpartition(".")[0] for key in kinds if "scale" in key.rpartition(".")[2]}
        lacking = [k for k, kind in kinds.items() if kind.startswith("F8_E") and k.rpartition(".")[0] not in scaled]
        if lacking := sorted(key for key in lacking if "scale" not in key.rpartition(".")[2]):
            raise UserError(
                f"{path}: {len(lacking)} parameters are 8-bit floats without a scale in the file ({lacking[0]}); "
                "restore the file"
            )
        return
    if bare:
        what = "1 packed layer is" if len(bare) == 1 else f"{len(bare)} packed layers are"
        raise UserError(f"{path}: {what} incomplete in the file ({min(bare)}); restore the file")


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
