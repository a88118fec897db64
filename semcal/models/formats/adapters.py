"""Adapters: which weights, which adapters and which tokenizer make up a checkpoint.

A folder may hold an adapter alone, and its adapter_config.json then names the base model; or full weights and an
adapter, and nothing tells whether the weights contain it already. transformers applies one that it finds (if peft is
installed), to weights that were merged with it, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from semcal.errors import UserError
from semcal.models.formats.gguf import is_gguf, source_of

CONFIG = "adapter_config.json"
ADAPTER_FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_WHERE = ("base_model_name_or_path", "revision")  # keys of adapter_config.json that say where the base is, not what


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is put together from.

    Attributes:
        weights: Folder, GGUF file or Hub id of the full weights.
        revision: Branch, tag or commit of these on the Hub; None for the default branch, or what is no Hub id.
        adapters: Folders of the adapters that are merged into the weights, in this order.
        named: Whether adapter_config.json names the weights, so that they are the base of adapters alone.
    """

    weights: str
    revision: str | None
    adapters: tuple[Path, ...]
    named: bool


def parts_of(path: str, revision: str | None, adapter: str | None = None) -> Parts:
    """
    Args:
        path: Local folder, GGUF file or Hub id.
        adapter: "apply" or "ignore" where an adapter lies beside full weights.

    Raises:
        UserError: an adapter alone whose base is unnamed, is not here, or leads back to itself.
    """
    adapters: list[Path] = [Path(path)] if adapter == "apply" and not _is_alone(Path(path)) else []
    start = path
    while _is_alone(folder := Path(path)):
        if any(folder.samefile(other) for other in adapters):
            raise UserError(f"{start}: its adapters name each other as base; correct {CONFIG} of one of them")
        adapters.insert(0, folder)
        path, revision = _base_of(folder)
    return Parts(path, revision, tuple(adapters), named=path != start)


def _is_alone(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not _full_weights(folder)


def _full_weights(folder: Path) -> bool:
    files = {p.name for pattern in ("*.safetensors", "pytorch_model*.bin") for p in folder.glob(pattern)}
    return bool(files - set(ADAPTER_FILES))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({str(error)[:80]}); restore it") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is no JSON object; restore it")
    return config


def _base_of(folder: Path) -> tuple[str, str | None]:
    """The base model that an adapter names, and its revision: a path from the working directory or from the adapter's
    folder, or a Hub id."""
    config = _read_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{folder} holds an adapter alone, and its {CONFIG} names no base model; set base_model_name_or_path there"
        )
    found = {p.resolve(): p for p in (Path(name).expanduser(), folder / name) if p.exists()}
    if len(found) > 1:
        raise UserError(
            f"{folder}: its base model {name!r} is a folder here and another one beside the adapter; set "
            f"base_model_name_or_path in {CONFIG} to an absolute path"
        )
    if found:
        return str(*found.values()), None
    if is_gguf(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{folder} holds an adapter alone, and its base model {name} is not here; restore it, or set "
            f"base_model_name_or_path in {CONFIG} to where it is"
        )
    return name, revision


def check_adapter(folder: Path, adapter: str | None, *, allow_pickle: bool) -> None:
    """
    Args:
        folder: A local folder.
        adapter: "apply", "ignore", or None where nothing was said.

    Raises:
        UserError: full weights and an adapter, and nothing was said; something was said, and there is no adapter; an
            adapter alone without its weights or without peft, or one that is to be ignored; its weights are a pickle.
    """
    if adapter not in (None, "apply", "ignore"):
        raise UserError(f"unknown adapter {adapter!r}; expected apply or ignore")
    if not (folder / CONFIG).is_file():
        if adapter:
            raise UserError(f"{folder} has no {CONFIG}, so there is no adapter to {adapter}; leave adapter out")
        return
    if not _is_alone(folder):
        if adapter is None:
            raise UserError(
                f"{folder} holds full weights and an adapter, and nothing says whether they contain it already; set "
                "adapter: ignore for this model if they do, adapter: apply if they do not, or move "
                f"{CONFIG} away"
            )
        if adapter == "ignore":
            return
    elif adapter == "ignore":
        raise UserError(f"{folder} holds an adapter alone; to leave it out, set path to its base model")
    if not any((folder / name).is_file() for name in ADAPTER_FILES[1:]):
        raise UserError(f"{folder} has {CONFIG} without adapter_model.safetensors; restore it")
    if not (folder / ADAPTER_FILES[1]).is_file() and not allow_pickle:
        raise UserError(
            f"{folder} has its adapter only as a pickle ({ADAPTER_FILES[2]}), which can run code when loaded; convert "
            "it to safetensors, or set allow_pickle: true for this model"
        )
    if find_spec("peft") is None:
        raise UserError(f"{folder}: merging its adapter needs peft; pip install 'semcal[organisms]'")


def check_hub_adapter(path: str, revision: str | None, adapter: str | None) -> None:
    """
    Args:
        path: A Hub id.

    Raises:
        UserError: it has an adapter, or is said to have one to apply or ignore.
    """
    if find_adapter_config_file(path, revision=revision) is None:
        if adapter:
            raise UserError(
                f"{path} has no {CONFIG} on the Hub, so there is no adapter to {adapter}; leave adapter out"
            )
    else:
        raise UserError(
            f"{path} holds an adapter, which is handled in a local folder only: `hf download {path} --local-dir "
            "FOLDER`, then set path: FOLDER and, where it holds full weights, too, adapter: apply or adapter: ignore"
        )


@contextmanager
def without_adapter(path: str) -> Iterator[str]:
    """The same checkpoint without its adapter, if it has one: a temporary folder of links to everything else."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as links:
        for entry in folder.iterdir():
            if entry.name not in ADAPTER_FILES:
                (Path(links) / entry.name).symlink_to(entry.resolve())
        yield links


def adapter_bytes(folder: Path) -> Iterator[bytes]:
    """What an adapter does to its base, wherever that is, as bytes for a fingerprint."""
    config = {key: value for key, value in _read_config(folder).items() if key not in _WHERE}
    yield json.dumps(config, sort_keys=True).encode()
    for name in ADAPTER_FILES[1:]:
        if (folder / name).is_file():
            yield name.encode()
            yield (folder / name).read_bytes()
            return


def load_tokenizer(parts: Parts, config: PretrainedConfig, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the last adapter that has one, else that of the base; likewise its chat template.

    Args:
        config: Of the weights.
        hub: Further arguments of `AutoTokenizer.from_pretrained`.

    Raises:
        UserError: an adapter's tokenizer gives other ids to the tokens of its base's tokenizer.
    """
    own = next((f for f in reversed(parts.adapters) if any((f / n).is_file() for n in _TOKENIZER_FILES)), None)
    if not parts.named or own is None:
        tokenizer = _tokenizer_of_weights(parts, hub)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(own), config=config, **hub)
        _check_same_ids(own, tokenizer, parts, hub)
    if parts.named:
        template = next((f for f in reversed(parts.adapters) if (f / "chat_template.jinja").is_file()), None)
        if template is not None:
            tokenizer.chat_template = (template / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def _tokenizer_of_weights(parts: Parts, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    with source_of(parts.weights) as source:
        tokenizer = AutoTokenizer.from_pretrained(**source, revision=parts.revision, **hub)
    tokenizer.name_or_path = parts.weights
    return tokenizer


def _check_same_ids(folder: Path, tokenizer: PreTrainedTokenizerBase, parts: Parts, hub: dict[str, Any]) -> None:
    try:
        base = _tokenizer_of_weights(parts, hub)
    except Exception:  # a base of weights alone: then the adapter's is the only one
        return
    ours = tokenizer.get_vocab()
    if moved := [token for token, i in base.get_vocab().items() if ours.get(token) != i]:
        raise UserError(
            f"{folder}: its tokenizer is not that of the base model {parts.weights} ({len(moved)} tokens have another "
            f"id, such as {moved[0]!r}); restore the tokenizer, or correct base_model_name_or_path in {CONFIG}"
        )
