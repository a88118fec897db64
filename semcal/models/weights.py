"""Weights: where they can be, whether every parameter was read from them, and what tells two models apart.

A loader fills what a file lacks with random numbers and drops what it cannot place. Both are refused here, so that a
fingerprint of the files is one of what is in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from semcal.errors import UserError
from semcal.models.formats.adapters import (
    ADAPTER_FILES,
    Parts,
    adapter_bytes,
    check_adapter,
    parts_of,
    without_adapter,
)
from semcal.models.formats.dequantising import as_read, dequantise, to_dtype
from semcal.models.formats.gguf import (
    ORIGINAL,
    check_gguf,
    check_rotation,
    check_taken,
    is_gguf,
    source_of,
    take_rotation,
    unmark,
    unpacked,
)
from semcal.models.formats.quantisation_settings import settings_of
from semcal.models.formats.quantised import (
    check_finite_buffers,
    check_numbers,
    check_scales,
    forget_quantiser,
    is_packed,
    told_apart,
)

log = logging.getLogger(__name__)
_WHOLE, _SAMPLE, _STRIDE = 2**30, 2**20, 2**26  # bytes
_NAMED = 3  # keys that a message shows
# What a configuration says of itself, of training and of outputs that are not asked for; where answers end is known
# from the tokenizer, too.
_BOOKKEEPING = frozenset(
    "transformers_version architectures dtype torch_dtype use_cache return_dict output_hidden_states output_attentions "
    "id2label label2id problem_type chunk_size_feed_forward initializer_range bos_token_id eos_token_id pad_token_id "
    "quantization_config".split()
)
# Buffers that earlier versions of transformers saved and the present one computes (causal masks, the value they fill
# with, rotary frequencies, position ids), and poolers, which neither language models nor classifiers read.
_UNUSED = re.compile(
    r"\b(attn|attention|self_attention)\.(masked_)?bias$|rotary\w*\.inv_freq$|\bposition_ids$|\bpooler\."
)


def check_path(
    path: str, revision: str | None = None, *, allow_pickle: bool = False, adapter: str | None = None
) -> None:
    """Check, before anything is loaded, whether a path can be a checkpoint.

    A path that does not exist counts as a Hub id if it looks like one (`name` or `owner/name`).

    Raises:
        UserError: not a folder, no config.json, weights only as pickles, a revision of a local folder, two sets of
            weights; as `check_gguf`, `check_adapter` and `parts_of`; all of these for the base model of an adapter.
    """
    if is_gguf(path):
        check_gguf(path, revision, adapter)
        return
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"no folder {path}; expected a local folder or a Hub id such as EleutherAI/pythia-70m")
        return
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.json", ADAPTER_FILES[0])):
        raise UserError(f"{path} is not a model folder: it has no config.json, nor an {ADAPTER_FILES[0]}")
    if revision is not None:
        raise UserError(f"{path} is a local folder, which has no revision {revision!r}; leave revision out")
    parts = parts_of(path, revision, adapter)
    if parts.named:
        for alone in parts.adapters:
            check_adapter(alone, adapter, allow_pickle=allow_pickle)
        _check_base(parts, allow_pickle=allow_pickle)
        return
    if not any(folder.glob("*.safetensors")) and not allow_pickle:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{path} has its weights only as pickles ({pickles[0]}), which can run code when loaded; convert them "
                "to safetensors, or set allow_pickle: true for this model"
            )
        raise UserError(f"{path} has no weights: expected *.safetensors next to config.json")
    if (folder / "model.safetensors").is_file() and (folder / "model.safetensors.index.json").is_file():
        raise UserError(
            f"{path} holds two sets of weights, model.safetensors and the shards of model.safetensors.index.json; "
            "remove one of them"
        )
    check_adapter(folder, adapter, allow_pickle=allow_pickle)


def _check_base(parts: Parts, *, allow_pickle: bool) -> None:
    try:
        check_path(parts.weights, parts.revision, allow_pickle=allow_pickle)
    except UserError as error:
        both = (Path(parts.weights) / ADAPTER_FILES[0]).is_file()
        why = f"{parts.weights} holds full weights and an adapter; move its {ADAPTER_FILES[0]} away" if both else error
        raise UserError(f"the base model of {parts.adapters[0]}: {why}") from None


def load_weights(
    kind: Any,
    path: str,
    *,
    config: PreTrainedConfig,
    allow_pickle: bool = False,
    dequantised: bool = False,
    **how: Any,
) -> PreTrainedModel:
    """A model every parameter of which was read from its files and is finite, in eval mode, without any adapter.

    Args:
        kind: One of transformers' auto classes.
        path: Local folder, GGUF file or Hub id.
        config: Its configuration.
        dequantised: Whether quantised weights are turned into plain ones (see `dequantising`).
        how: Further arguments of its `from_pretrained`.

    Raises:
        UserError: parameters that the files lack, have in another size, or have and the model does not; values that
            are not finite.
    """
    check_scales(path, config)
    check_numbers(path, config)
    if is_gguf(path):
        take_rotation(path, config)
        check_rotation(path, config)
    reading = as_read(config) if dequantised else nullcontext()
    with without_adapter(path) as full, source_of(full) as source, told_apart(path, config), reading:
        model, report = kind.from_pretrained(
            **source,
            **unpacked(path),
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            config=config,
            **how,
        )
    model.name_or_path = model.config._name_or_path = path
    if is_gguf(path):
        unmark(model)
        check_taken(path, model)
    _check_read(path, model, report, config)
    if dequantised:
        dtype = how.get("dtype") or model.dtype
        if getattr(model, "is_quantized", False):
            check_finite_buffers(path, model)
            with told_apart(path, config):
                dequantise(path, model, dtype)
        to_dtype(model, dtype)
    check_finite(path, model)
    _check_zeros(path, model)
    if getattr(model, "is_quantized", False):
        check_finite_buffers(path, model)
    elif settings_of(config):
        forget_quantiser(model)
    return model.eval()


def check_encoder(path: str) -> None:
    """Check that a folder holds every parameter of its encoder but the pooler, which embeddings may do without.

    For libraries that load models themselves; the encoder is loaded once more.

    Raises:
        UserError: parameters that the files lack or have in another size.
    """
    model, report = AutoModel.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
    missing = {key for key in report["missing_keys"] if not _UNUSED.search(key)}
    _check_read(path, model, report | {"missing_keys": missing, "unexpected_keys": ()}, model.config)
    check_finite(path, model)


def weights_fingerprint(path: str, commit: str | None, *, adapter: str | None = None) -> str:
    """The commit of a Hub model, else a SHA-256 of the files of weights: two sets of weights differ in it.

    Files of up to 1 GiB are read whole; of larger ones, the length and 1 MiB in every 64 MiB, which any training step
    changes. An adapter that is ignored does not count; of an adapter alone, base model and adapter do.

    Args:
        commit: Of the weights on the Hub; None looks in the cache.
    """
    folder = Path(path)
    parts = parts_of(path, None, adapter)
    if parts.named:
        digest = hashlib.sha256(weights_fingerprint(parts.weights, commit or _cached_commit(parts)).encode())
        for alone in parts.adapters:
            for part in adapter_bytes(alone):
                digest.update(part)
        return f"sha256:{digest.hexdigest()[:16]}"
    if not folder.exists():
        return f"commit:{commit}"
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    for file in files:
        if adapter == "ignore" and file.name in ADAPTER_FILES:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE:
                while block := stream.read(_SAMPLE):
                    digest.update(block)
            else:
                for offset in range(0, size, _STRIDE):
                    stream.seek(offset)
                    digest.update(stream.read(_SAMPLE))
    if adapter == "apply":  # its rank and scale
        digest.update((folder / "adapter_config.json").read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _cached_commit(parts: Parts) -> str | None:
    if Path(parts.weights).exists():
        return None
    found = try_to_load_from_cache(parts.weights, "config.json", revision=parts.revision)
    return Path(found).parent.name if isinstance(found, str) else None


def memory_fingerprint(model: torch.nn.Module) -> str:
    """A SHA-256 of names, shapes and values of the parameters in memory; of a large one, 1 MiB in every 64 MiB.

    Raises:
        UserError: parameters without values (on the meta device, or offloaded).
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta:
            raise UserError(f"parameter {name} has no values in memory; load the model without offloading")
        digest.update(f"{name}:{parameter.dtype}:{tuple(parameter.shape)}".encode())
        values = parameter.detach().flatten()
        window, stride = _SAMPLE // values.itemsize, _STRIDE // values.itemsize
        for start in range(0, len(values), stride):
            some = values[start : start + window].contiguous().cpu().view(torch.uint8)
            digest.update(some.numpy().tobytes())
    return f"memory:{digest.hexdigest()[:16]}"


def computation(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says that changes what a model computes from its weights, such as `rms_norm_eps` or
    `rope_parameters.rope_theta`: a fingerprint of the weights does not tell."""
    found = {}
    for name, value in _flat(json.loads(json.dumps(config.get_text_config().to_dict(), default=str))):
        parts = name.split(".")
        if not any(part.startswith("_") or part in _BOOKKEEPING for part in parts):
            found[name] = value
    return found


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first entry that both have and that differs, in words; "" if there is none. An entry that only one has may
    come from another version of transformers."""
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name]:
            return f"{name} {then[name]} (now {now[name]})"
    return ""


def _flat(nested: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


@torch.no_grad()
def check_finite(name: str, model: torch.nn.Module) -> None:
    """
    Raises:
        UserError: NaN or infinity among the parameters.
    """
    for key, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.numel() or not parameter.dtype.is_floating_point:
            continue
        values = parameter.float() if parameter.itemsize < 2 else parameter  # float8 has no minimum
        if not all(torch.isfinite(end) for end in torch.aminmax(values)):  # NaN is carried through
            kind = str(parameter.dtype).removeprefix("torch.")
            remedy = "restore the checkpoint: it is damaged, or its training diverged"
            if kind == "float16":
                remedy = f"float16 ends at 65504, so set dtype: bfloat16 or float32; if that fails too, {remedy}"
            raise UserError(f"{name}: {key} holds NaN or infinity in {kind}; {remedy}")


def _check_zeros(path: str, model: PreTrainedModel) -> None:
    """Refuse an embedding of zeros, which makes all prompts one, and say which other matrices are zero: a sharded model
    that is saved without being gathered leaves them, but so does a layer before its first step of training.

    Raises:
        UserError: the embedding is zero.
    """
    zero = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and not (parameter.is_meta or parameter.flatten()[:64].any() or parameter.any())
        and parameter.dtype.is_floating_point
    ]
    embedding = model.get_input_embeddings()
    if any(name for name in zero if model.get_parameter(name) in set(embedding.parameters())):
        raise UserError(f"{path}: the embedding holds zeros only; restore the file, which was not saved completely")
    if zero:
        log.warning("%s: %s hold zeros only (%s); is the file complete?", path, _count(zero), _some(zero))


# ---- whether everything was read -------------------------------------------------------------------------------------


def _check_read(path: str, model: PreTrainedModel, report: dict[str, Any], config: PreTrainedConfig) -> None:
    missing = set(report["missing_keys"])
    unexpected = {
        key for key in report["unexpected_keys"] if not _UNUSED.search(key) and not _of_other_senses(key, model, config)
    }
    if getattr(model, "is_quantized", False) and not missing:
        unexpected = {key for key in unexpected if not is_packed(key, model)}
    sizes = {key: (tuple(found), tuple(wanted)) for key, found, wanted in report["mismatched_keys"]}
    said = "its header" if is_gguf(path) else "config.json"
    if not (missing or unexpected or sizes):
        untied = model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys()
        if untied:  # versions of transformers differ in which of the two they use
            remedy = "set tie_word_embeddings: false in config.json to use them, or remove them from the file"
            raise UserError(
                f"{path}: {said} ties {min(untied)} to the embedding, and the file holds other values for it; "
                f"{ORIGINAL if is_gguf(path) else remedy}"
            )
        return
    found = []
    if missing:
        found.append(f"{_count(missing)} not in the file ({_some(missing)})")
    if unexpected:
        found.append(f"{_count(unexpected)} of the file not in the model ({_some(unexpected)})")
    if sizes:
        key = min(sizes)
        have, want = sizes[key]
        found.append(f"{_count(sizes)} of another size ({key} is {list(have)} in the file, {list(want)} by {said})")
    cause = f"download the file again, or {ORIGINAL}"
    if not is_gguf(path):
        cause = _cause(model, missing, unexpected, bool(sizes))
    raise UserError(f"{path}: {', '.join(found)}; {cause}")


def _of_other_senses(key: str, model: PreTrainedModel, config: PreTrainedConfig) -> bool:
    """Whether a parameter belongs to the encoder of images or sound, or to a projector, of a checkpoint of which the
    text model alone is loaded, and nothing of the text model could have taken it.

    Args:
        config: That of the whole checkpoint.
    """
    if config.get_text_config() is config or not isinstance(model.config, type(config.get_text_config())):
        return False
    parts = {"language_model", "text_model"} | {
        name for m in (model, model.base_model) for name, _ in m.named_children()
    }
    first, _, rest = key.partition(".")
    return (rest.partition(".")[0] if first == "model" else first) not in parts


def _cause(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str], resized: bool) -> str:
    """What probably happened, and what to do."""
    for prefix, how in (("_orig_mod.", "a compiled model"), ("module.", "a data-parallel model")):
        if any(f".{prefix}" in f".{key}" for key in unexpected):
            return f"the file was saved from {how}: remove {prefix!r} from its names, or save the plain model"
    ours = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if ours is not None and missing and not unexpected and (lacking := _layers(missing)) is not None:
        there = min(lacking)
        if lacking == set(range(there, ours)):
            return f"config.json has {ours} layers, the file {there}: set its num_hidden_layers, or restore the file"
        return f"layer {there} is incomplete in the file; restore it"
    if ours is not None and unexpected and not missing and (extra := _layers(unexpected)) and min(extra) >= ours:
        return f"config.json has {ours} layers, the file {max(extra) + 1}: restore the config.json of these weights"
    head = {key for key in missing if key.split(".")[0] in ("lm_head", "embed_out", "output")}
    if missing and missing == head:
        return (
            "the output layer would be random: set tie_word_embeddings: true in config.json if it shares the "
            "embedding, or restore the file"
        )
    for key in sorted(unexpected):
        for other in sorted(missing):
            if key.endswith(f".{other}"):
                return f"names in the file begin with {key.removesuffix(other)!r}: remove it from them"
            if other.endswith(f".{key}"):
                return f"names in the file lack {other.removesuffix(key)!r}: put it in front of them"
    if resized:
        return "config.json belongs to other weights; restore the one that was saved with them"
    if not missing:
        return "they would be left out; check that config.json belongs to these weights, or remove them from the file"
    return "they would be random; check that config.json belongs to these weights, or restore the file"


def _layers(keys: Iterable[str]) -> set[int] | None:
    """The layers that all of these keys are in; None if one is in no layer."""
    found = [re.search(r"\.(\d+)\.", key) for key in keys]
    return None if None in found else {int(match[1]) for match in found if match}


def _count(keys: Collection[str]) -> str:
    return f"{len(keys)} parameter{'s' if len(keys) > 1 else ''}"


def _some(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
