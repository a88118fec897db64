"""GGUF files: the weights, tokenizer and chat template of a model in one file, usually quantised.

transformers reads them and dequantises every weight; what is computed is the quantised model in the dtype asked for.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedModel

from semcal.errors import UserError

_MAGIC = b"GGUF"


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


def source_of(path: str) -> dict[str, Any]:
    """The arguments by which transformers' `from_pretrained` finds a checkpoint."""
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    return {"pretrained_model_name_or_path": str(Path(path).absolute().parent), "gguf_file": Path(path).name}


@contextmanager
def parsed_once(path: str) -> Iterator[GgufHeader | None]:
    """The header of a GGUF file, None for any other checkpoint. Meanwhile transformers reuses what was parsed.

    It would parse the file again for the configuration, the tokenizer and the weights, and each takes seconds where
    the vocabulary is large.

    Raises:
        UserError: a damaged or cut file, or an architecture that transformers cannot read.
    """
    if not is_gguf(path):
        yield None
        return
    gguf = _package()
    try:
        reader = gguf.GGUFReader(str(Path(path).absolute()))
    except Exception as error:  # whatever a parser makes of a file that is not whole
        raise UserError(
            f"{path} is damaged or cut short ({type(error).__name__}: {' '.join(str(error).split())[:80]}); copy or "
            "download it again"
        ) from error
    header = _header(path, reader)
    with patch.object(gguf, "GGUFReader", lambda *_: reader):
        yield header


def _header(path: str, reader: Any) -> GgufHeader:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    field = reader.get_field("general.architecture")
    if field is None:
        raise UserError(f"{path} does not say its architecture (general.architecture); convert the model again")
    architecture = field.contents()
    # As transformers names them: those of llama.cpp, some of them with an underscore.
    known = {name.replace("-", "_") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if architecture.replace("-", "_") not in known | {"qwen2moe", "qwen3moe", "t5encoder"}:
        raise UserError(
            f"{path} is of architecture {architecture!r}, which transformers cannot read from GGUF; use the original "
            "checkpoint in safetensors"
        )
    named = reader.get_field("general.file_type")
    try:
        kind = _package().LlamaFileType(int(named.contents())).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (AttributeError, ValueError):
        kind = "of no known file type"
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    stored = ", ".join(f"{times} {name}" for name, times in types.most_common())
    return GgufHeader(architecture, f"GGUF {kind} (tensors: {stored})")


def unmark(model: PreTrainedModel) -> None:
    """Take off the marks of quantisation, of which nothing is left in memory; saving and adapters would refuse it."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    vars(model)["is_quantized"] = False
    vars(model.config).pop("quantization_config", None)
