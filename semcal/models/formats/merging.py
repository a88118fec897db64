"""An adapter merged into the weights of its base, so that plain modules are left which hooks and probes can name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from semcal.errors import UserError
from semcal.models.formats.adapters import CONFIG
from semcal.sampling.decoding.rounding import difference, is_low, remedy, rounding

_NAMED = 3  # keys that a message shows
_COMPARED = 8  # tokens of the sequence on which merged and unmerged adapter are compared
_PREFIX = "base_model.model."  # of every name in an adapter's file
# Ways to initialise LoRA that change the base at random or by data, so that peft cannot repeat it.
_UNREPEATABLE = ("pissa_niter", "loftq", "corda", "eva", "lora_ga")


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter in this folder added to its weights, in eval mode; its modules are the plain ones.

    Whatever the dtype of the model, sums are made in float32 and rounded once to that of each weight. The merged model
    is compared with the unmerged one on a few tokens.

    Raises:
        UserError: peft is missing; the adapter is incomplete, does not fit, holds NaN, or cannot be merged into
            weights.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(f"{folder}: merging its adapter needs peft; pip install 'semcal[organisms]'") from error
    if getattr(model, "is_quantized", False):
        raise UserError(
            f"{folder}: its base model stays quantised in memory, and merging an adapter would round it again; set "
            f"base_model_name_or_path in {CONFIG} to the model before quantisation"
        )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws from the global generator
            warnings.simplefilter("ignore")  # what peft warns of is checked below
            torch.manual_seed(0)
            config = peft.PeftConfig.from_pretrained(str(folder))
            _check_kind(folder, config)
            found = peft.utils.load_peft_weights(str(folder), device="cpu")
            _check_values(folder, found)
            _fit_embeddings(folder, model, found)
            wrapped = peft.get_peft_model(model, config).eval()
            _check_keys(folder, set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)) - set(found))
            read = wrapped.load_adapter(str(folder), "default")
        # Of a module that is saved whole, peft writes copies under the names that it has in memory.
        copies = (".modules_to_save.", ".original_module.")
        _check_keys(folder, surplus={k for k in read.unexpected_keys if not any(c in k for c in copies)})
        _untie(wrapped)
        before = _logits(wrapped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft says that layers were merged before
            _merge_in_single(wrapped)
            merged: Any = wrapped.merge_and_unload(safe_merge=True)  # the rest: what is saved whole, trained tokens
    except UserError:
        raise
    except Exception as error:  # of whatever kind of adapter
        raise UserError(
            f"{folder}: its adapter cannot be merged into its base model ({_in_short(error)}); merge it where it was "
            "trained, and save the merged model"
        ) from error
    _check_merged(folder, before, merged)
    return merged.eval()


def _check_kind(folder: Path, config: Any) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
        raise UserError(
            f"{folder}: its adapter ({kind}) cannot be merged, for it adds to what is read instead of changing "
            "weights; choose a model with LoRA or full weights"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise UserError(
            f"{folder}: its adapter (activated LoRA) cannot be merged, for it acts after certain tokens only; choose "
            "a model with plain LoRA or full weights"
        )
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith(_UNREPEATABLE):
        raise UserError(
            f"{folder}: its adapter began from {start}, which also changed the base model, in a way that cannot be "
            "repeated; convert it (path_initial_model_for_weight_conversion of peft), or merge it where it was trained"
        )


def _check_values(folder: Path, found: dict[str, torch.Tensor]) -> None:
    for key, values in found.items():
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise UserError(
                f"{folder}: {key} of its adapter holds NaN or infinity; restore it: it is damaged, or its training "
                "diverged"
            )


def _fit_embeddings(folder: Path, model: PreTrainedModel, found: dict[str, torch.Tensor]) -> None:
    """Give the model the vocabulary of an adapter that brings embeddings of more tokens."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    if outputs is None:
        return
    names = {module: name for name, module in model.named_modules()}
    tied = outputs.weight is inputs.weight
    rows, brought = len(inputs.weight), set[str]()
    for module in (inputs, outputs):
        weight = found.get(f"{_PREFIX}{names[module]}.weight")
        if weight is not None and len(weight) != len(inputs.weight):
            rows, brought = len(weight), brought | {names[module]}
    if brought:
        if lacking := {names[inputs], names[outputs]} - brought if not tied else ():
            raise UserError(
                f"{folder}: its adapter has {rows} tokens, the base model {len(inputs.weight)}, and the adapter does "
                f"not bring {min(lacking)} for them; restore it, or save it with both embeddings"
            )
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.tie_weights()


def _untie(wrapped: Any) -> None:
    """Give the output layer a weight of its own where an adapter of it, or of the embedding, would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends: tuple[Any, Any] = wrapped.get_input_embeddings(), wrapped.get_output_embeddings()
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    inputs, outputs = (end.get_base_layer() if hasattr(end, "get_base_layer") else end for end in ends)
    if outputs is not None and outputs.weight.data_ptr() == inputs.weight.data_ptr():
        outputs.weight = torch.nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)


def _merge_in_single(wrapped: Any) -> None:
    """Merge layer by layer, the weights of each in float32 meanwhile, so that no more than one is held wider."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]:
        low = [(p, p.dtype) for p in layer.get_base_layer().parameters() if is_low(p.dtype)]
        for parameter, _ in low:
            parameter.data = parameter.data.float()
        layer.merge(safe_merge=True)
        for parameter, dtype in low:
            parameter.data = parameter.data.to(dtype)


def _check_keys(folder: Path, lacking: Collection[str] = (), surplus: Collection[str] = ()) -> None:
    for keys, what in ((lacking, "not in the file"), (surplus, "of the file not in the model")):
        if keys:
            raise UserError(
                f"{folder}: the adapter's file does not fit its {CONFIG} and its base model: {len(keys)} parameters "
                f"{what} ({', '.join(sorted(keys)[:_NAMED])}); restore both, or correct base_model_name_or_path"
            )


@torch.inference_mode()
def _logits(model: Any) -> torch.Tensor:
    """[position, vocab] on a sequence of tokens from all over the vocabulary."""
    embedding = model.get_input_embeddings().weight
    ids = torch.linspace(0, len(embedding) - 1, _COMPARED, device=embedding.device).long()[None]
    return model(input_ids=ids, use_cache=False).logits[0]


def _check_merged(folder: Path, before: torch.Tensor, merged: PreTrainedModel) -> None:
    after = _logits(merged)
    apart = difference(before, after) if bool(before.isfinite().all()) else math.inf
    limit = rounding(merged, after, lambda: _logits(merged))
    if not apart <= limit:
        raise UserError(
            f"{folder}: merged, its adapter computes something else than unmerged (log-probabilities differ by "
            f"{apart:.2g} nats, {limit:.2g} is rounding); merge it where it was trained, or {remedy(merged)}"
        )


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
