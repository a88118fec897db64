"""GGUF files: the weights, tokenizer and chat template of a model in one file, usually quantised.

transformers reads them and dequantises every weight; what is computed is the quantised model in the dtype asked for.
"""

from __future__ import annotations

import copy
import importlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from semcal.errors import UserError

_MAGIC = b"GGUF"
_NAMED = 3  # tensors that a message shows
_ROTATION = "rope_freqs.weight"  # by what each rotary frequency is divided
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # 3.1 to 3.3
_OTHER_SENSES = ("v.", "a.", "mm.")  # tensors of the encoders of images and sound, and of their projectors
ORIGINAL = "use the original checkpoint in safetensors"


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        architecture: As llama.cpp names it, e.g. "gemma3".
        quantised: How its weights are stored, e.g. "GGUF Q4_K_M (109 tensors F32, 81 Q5_0)".
    """

    architecture: str
    quantised: str


def _package() -> Any:
    """The package `gguf`, an extra; by name, since this file has the same."""
    return importlib.import_module("gguf")


def is_gguf(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".gguf"


def check_gguf(path: str, revision: str | None, adapter: str | None) -> None:
    """Check, before anything is loaded, whether a file can be a GGUF model.

    Raises:
        UserError: no such file, not GGUF, a revision or an adapter, which a file has not, or `gguf` is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no file {path}; expected a GGUF file on this machine (download it from the Hub first)")
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not begin with {_MAGIC.decode()}; download it again")
    for key, value in (("revision", revision), ("adapter", adapter)):
        if value is not None:
            raise UserError(f"{path} is a file, which has no {key} {value!r}; leave {key} out")
    try:
        _package()
    except ImportError:
        raise UserError(f"{path} is a GGUF file, which needs a package: pip install 'semcal[gguf]'") from None


@contextmanager
def source_of(path: str) -> Iterator[dict[str, Any]]:
    """The arguments by which transformers' `from_pretrained` finds a checkpoint.

    Those of a GGUF file name a temporary folder with a link to it alone: transformers takes a tokenizer and an adapter
    that lie beside the file for the file's.
    """
    if not is_gguf(path):
        yield {"pretrained_model_name_or_path": path}
        return
    file = Path(path).absolute()
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / file.name).symlink_to(file)
        yield {"pretrained_model_name_or_path": alone, "gguf_file": file.name}


def unpacked(path: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` by which all weights of a GGUF file are dequantised: where `kernels` is
    installed, transformers keeps those of some architectures packed."""
    settings = getattr(transformers, "GgufConfig", None)  # of later versions, as is keeping them packed
    return {"quantization_config": settings(dequantize=True)} if is_gguf(path) and settings else {}


@contextmanager
def parsed_once(path: str) -> Iterator[GgufHeader | None]:
    """The header of a GGUF file, None for any other checkpoint. Meanwhile transformers reuses what was parsed.

    It would parse the file again for the configuration, the tokenizer and the weights, and each takes seconds where
    the vocabulary is large.

    Raises:
        UserError: a damaged or cut file, a part of a split one, or an architecture that transformers cannot read.
    """
    if not is_gguf(path):
        yield None
        return
    gguf = _package()
    try:
        reader = _reader(path)
    except Exception as error:  # whatever a parser makes of a file that is not whole
        raise UserError(
            f"{path} is damaged or cut short ({type(error).__name__}: {' '.join(str(error).split())[:80]}); copy or "
            "download it again"
        ) from error
    header = _header(path, reader)
    with patch.object(gguf, "GGUFReader", lambda *_: reader):
        yield header


def _reader(path: str) -> Any:
    """A GGUF file parsed; within `parsed_once`, what was parsed there."""
    return _package().GGUFReader(str(Path(path).absolute()))


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _header(path: str, reader: Any) -> GgufHeader:
    parts = _value(reader, "split.count") or 1
    if parts > 1:
        raise UserError(
            f"{path} is part {(_value(reader, 'split.no') or 0) + 1} of {parts}; join them with `llama-gguf-split "
            "--merge FIRST-PART WHOLE.gguf`, and name the whole file"
        )
    architecture = _value(reader, "general.architecture")
    if architecture is None:
        raise UserError(f"{path} does not say its architecture (general.architecture); convert the model again")
    if architecture.replace("-", "_") not in _known_architectures():
        raise UserError(
            f"{path} is of architecture {architecture!r}, which transformers cannot read from GGUF; {ORIGINAL}"
        )
    named = reader.get_field("general.file_type")
    try:
        kind = _package().LlamaFileType(int(named.contents())).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (AttributeError, ValueError):
        kind = "of no known file type"
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    stored = ", ".join(f"{times} {name}" for name, times in types.most_common())
    return GgufHeader(architecture, f"GGUF {kind} (tensors: {stored})")


def _known_architectures() -> set[str]:
    """As transformers names them: those of llama.cpp, some of them with an underscore."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    names = {*GGUF_SUPPORTED_ARCHITECTURES, *_newly_read(), "qwen2moe", "qwen3moe", "t5encoder"}
    return {name.replace("-", "_") for name in names}


def _newly_read() -> frozenset[str]:
    """Architectures of transformers' newer reader, which tells what it leaves out; earlier versions have none."""
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_CONFIG_ARCHS)


# ---- what transformers would leave out ------------------------------------------------------------------------------


def take_rotation(path: str, config: PreTrainedConfig) -> None:
    """Scale the rotary frequencies of a configuration as Llama 3.1 and later do, if its GGUF file divides them so: a
    tensor that transformers does not read. Any other tensor of its name is left to `check_taken`."""
    factors = next((t.data for t in _reader(path).tensors if t.name == _ROTATION), None)
    given = getattr(config, "rope_parameters", None) or {}
    if factors is None or given.get("rope_type") != "default":
        return
    divisor = torch.tensor(factors, dtype=torch.float64)  # (frequency,)
    if divisor.max() <= 1:
        return
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {**given, "rope_type": "llama3", "factor": float(divisor.max()), **_LLAMA3}
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))  # (frequency,)
    wanted = _frequencies(divisor, given["rope_theta"])
    if len(found) == len(wanted) and torch.allclose(found.double(), wanted, rtol=1e-4, atol=0):
        config.rope_parameters = scaled.rope_parameters


def check_rotation(path: str, config: PreTrainedConfig) -> None:
    """Check that a configuration has the rotary positions of its GGUF file, of which transformers reads some.

    Raises:
        UserError: it has another base or another scaling.
    """
    reader, theirs = _reader(path), _rotations(config)
    rope = f"{_value(reader, 'general.architecture')}.rope"
    base = _value(reader, f"{rope}.freq_base")
    if base and theirs and not any(_near(base, each.get("rope_theta")) for each in theirs):
        raise UserError(
            f"{path} rotates positions with base {base:g} ({rope}.freq_base), which transformers does not read; "
            f"{ORIGINAL}"
        )
    factor = _value(reader, f"{rope}.scaling.factor") or _value(reader, f"{rope}.scale_linear") or 1.0
    kind = _value(reader, f"{rope}.scaling.type") or "linear"  # as llama.cpp takes a factor alone
    if kind == "none" or (kind == "linear" and factor == 1):
        return
    if not any(str(each.get("rope_type")) == kind and _near(factor, each.get("factor")) for each in theirs):
        raise UserError(
            f"{path} scales its rotary positions ({rope}.scaling: {kind}, factor {factor:g}), which transformers does "
            f"not read; {ORIGINAL}"
        )


def _rotations(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The kinds of rotary positions of a model: one of all layers, or one of each type of layer."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    return nested or ([given] if given else [])


def _near(wanted: float, found: float | None) -> bool:
    return found is not None and math.isclose(wanted, found, rel_tol=1e-4)


def check_taken(path: str, model: PreTrainedModel) -> None:
    """Check that every tensor of a GGUF file went into a model: transformers drops those that it has no name for.

    Raises:
        UserError: it dropped some.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    reader = _reader(path)
    architecture = _value(reader, "general.architecture")
    if architecture in _newly_read():
        return
    taken = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={}))
    dropped = [
        tensor
        for tensor in reader.tensors
        if tensor.name not in taken
        and not (tensor.name.endswith("_exps.weight") and tensor.name.removesuffix(".weight") in taken)
        and not tensor.name.startswith(_OTHER_SENSES)
    ]
    base = _value(reader, f"{architecture}.rope.freq_base") or 10_000.0
    left = sorted(t.name for t in dropped if t.name != _ROTATION or not _rotates_by(model, t.data, base))
    if left:
        some = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
        raise UserError(
            f"{path}: transformers leaves out {len(left)} of its tensors ({some}), so it would compute another model; "
            f"{ORIGINAL}"
        )


def _rotates_by(model: PreTrainedModel, factors: Any, base: float) -> bool:
    """Whether a model has the rotary frequencies that a file asks for."""
    wanted = _frequencies(torch.tensor(factors, dtype=torch.float64), base)
    return any(
        len(buffer) == len(wanted) and torch.allclose(buffer.double().cpu(), wanted, rtol=1e-2, atol=1e-12)
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    )


def _frequencies(divisor: torch.Tensor, base: float) -> torch.Tensor:
    """(n,) rotary frequencies base ** (-i / n) / divisor[i], i < n."""
    n = len(divisor)
    return base ** (-torch.arange(n, dtype=torch.float64) / n) / divisor


def unmark(model: PreTrainedModel) -> None:
    """Take off the marks of quantisation, of which nothing is left in memory; saving and adapters would refuse it."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    vars(model)["is_quantized"] = False
    vars(model.config).pop("quantization_config", None)
