"""An adapter that lies beside full weights: merged into them, or left out, as the user says.

Nothing in a folder tells whether its weights already contain its adapter, and transformers applies one that it finds
(if peft is installed), to weights that were merged with it, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from semcal.errors import UserError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_adapter(folder: Path, adapter: str | None) -> None:
    """
    Args:
        folder: A local model folder.
        adapter: "apply", "ignore", or None where nothing was said.

    Raises:
        UserError: full weights and an adapter, and nothing was said; something was said, and there is no adapter.
    """
    if adapter not in (None, "apply", "ignore"):
        raise UserError(f"unknown adapter {adapter!r}; expected apply or ignore")
    has_adapter = (folder / ADAPTER_FILES[0]).is_file()
    if adapter and not has_adapter:
        raise UserError(f"{folder} has no adapter_config.json, so there is no adapter to {adapter}; leave adapter out")
    weights = {p.name for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern)} - set(ADAPTER_FILES)
    if has_adapter and weights and adapter is None:
        raise UserError(
            f"{folder} holds full weights and an adapter, and nothing says whether they contain it already; set "
            "adapter: ignore for this model if they do, adapter: apply if they do not, or move adapter_config.json away"
        )


def check_hub_adapter(path: str, revision: str | None, adapter: str | None) -> None:
    """
    Args:
        path: A Hub id that has a config.json.

    Raises:
        UserError: it also has an adapter, or is said to have one to apply or ignore.
    """
    if find_adapter_config_file(path, revision=revision) is None:
        if adapter:
            raise UserError(
                f"{path} has no adapter_config.json, so there is no adapter to {adapter}; leave adapter out"
            )
    else:
        raise UserError(
            f"{path} holds a model and an adapter, which is handled in a local folder only: `hf download {path} "
            "--local-dir FOLDER`, then set path: FOLDER, and adapter: apply or adapter: ignore"
        )


@contextmanager
def without_adapter(path: str) -> Iterator[str]:
    """The same checkpoint without its adapter, if it has one: a temporary folder of links to everything else."""
    folder = Path(path)
    if not (folder / ADAPTER_FILES[0]).is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as links:
        for entry in folder.iterdir():
            if entry.name not in ADAPTER_FILES:
                (Path(links) / entry.name).symlink_to(entry.resolve())
        yield links


def merge_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The model with the adapter in this folder added to its weights; its modules are those of the plain model.

    Raises:
        UserError: peft is missing; the adapter is incomplete, does not fit, or cannot be merged into weights.
    """
    try:
        from peft import PeftConfig, get_peft_model
    except ImportError as error:
        raise UserError("adapter: apply needs peft; pip install 'semcal[organisms]'") from error
    try:
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            config = PeftConfig.from_pretrained(path)
            if config.is_prompt_learning:
                kind = getattr(config.peft_type, "value", config.peft_type)
                raise UserError(f"{path}: its adapter ({kind}) cannot be merged, for it adds tokens; ignore it")
            wrapped = get_peft_model(model, config)
            read = wrapped.load_adapter(path, "default")
        if wrong := sorted({*read.missing_keys, *read.unexpected_keys}):
            raise UserError(
                f"{path}: the adapter's file does not fit its adapter_config.json ({', '.join(wrong[:3])}); "
                "restore both"
            )
        merged: Any = wrapped.merge_and_unload(safe_merge=True)
        return merged
    except UserError:
        raise
    except Exception as error:  # of whatever kind of adapter
        raise UserError(f"{path}: its adapter cannot be merged ({' '.join(str(error).split())[:200]})") from error
