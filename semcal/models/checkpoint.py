"""A checkpoint and its tokenizer: loaded from a local folder or the Hub, with everything a manifest wants to know.

Knows no dataset. Weights come from safetensors; pickled weights and remote code are refused unless asked for by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from semcal.errors import UserError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WHOLE_FILE, _SAMPLE, _STRIDE = 2**30, 2**20, 2**26


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be sampled, and where it came from.

    Attributes:
        model: The plain Hugging Face model in eval mode, with its own attention.
        tokenizer: Its tokenizer.
        path: Local folder or Hub id, as given.
        revision: Branch, tag or commit asked for; None for a local folder or the default branch.
        weights_hash: Fingerprint of the weights (see `weights_fingerprint`).
        tokenizer_hash: SHA-256 of the serialised tokenizer and its chat template, 16 hexadecimal digits.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    revision: str | None
    weights_hash: str
    tokenizer_hash: str

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load a checkpoint.

        Args:
            path: Local folder, or Hub id.
            revision: Branch, tag or commit on the Hub.
            dtype: "float32", "bfloat16" or "float16".
            device: "cpu", "cuda", "cuda:1", "mps", "auto" (the best single device), or "balanced" (spread over all
                GPUs through accelerate's device_map).
            allow_pickle: Also accept weights that exist only as pickles.
            trust_remote_code: Run code that ships with the checkpoint.

        Raises:
            UserError: not a model folder, unknown revision, no safetensors, unknown dtype or device.
        """
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}; one of {', '.join(DTYPES)}")
        check_path(str(path), revision, allow_pickle=allow_pickle)
        placement = {"device_map": "balanced"} if device == "balanced" else {}
        target = None if device == "balanced" else pick_device(device)
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(path, **hub)
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
            model = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=DTYPES[dtype],
                use_safetensors=None if allow_pickle else True,
                **placement,
                **hub,
            )
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise UserError(_why_not(str(path), revision, error)) from error
        if target is not None:
            torch.nn.Module.to(model, target)
        model.eval().requires_grad_(False)
        return cls(
            model=model,
            tokenizer=tokenizer,
            path=str(path),
            revision=revision,
            weights_hash=weights_fingerprint(str(path), getattr(config, "_commit_hash", None)),
            tokenizer_hash=_tokenizer_hash(tokenizer),
        )

    @classmethod
    def without_weights(
        cls, path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, cached: bool = False
    ) -> LanguageModel:
        """Its tokenizer and configuration, for looking at prompts; it computes nothing and has no hash of weights.

        With `cached` nothing is fetched: what is not on this machine is not found.

        Raises:
            UserError: as `load`.
        """
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": cached}
        try:
            config = AutoConfig.from_pretrained(path, **hub)
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(_why_not(str(path), revision, error)) from error
        return cls(model, tokenizer, str(path), revision, "", _tokenizer_hash(tokenizer))

    @property
    def device(self) -> torch.device:
        """Where token ids go in (with device_map: the device of the embedding)."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def output_size(self) -> int:
        """Number of token ids the output layer scores (often a little more than the tokenizer has)."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return next(head.parameters()).shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context(self) -> int:
        """Most positions the model can attend to, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token id that ends an answer: of the tokenizer, of the config and of the generation config."""
        generation = getattr(self.model, "generation_config", None)
        found: set[int] = set()
        ids: Any
        for ids in (
            self.tokenizer.eos_token_id,
            self.model.config.eos_token_id,
            getattr(generation, "eos_token_id", None),
        ):
            if ids is not None:
                found.update([ids] if isinstance(ids, int) else ids)
        return frozenset(found)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, with exactly the special tokens that the tokenizer itself adds in front."""
        ids = list(self.tokenizer(text)["input_ids"])
        kept = ids[self._kept(ids)]
        if not kept:
            raise UserError("a prompt has no tokens at all")
        return tuple(int(i) for i in kept)

    def _kept(self, ids: list[int]) -> slice:
        stop = len(ids)
        while stop and ids[stop - 1] in self.eos_ids:  # some tokenizers close what they are given; a prompt stays open
            stop -= 1
        bos = self.tokenizer.bos_token_id
        return slice(1 if bos is not None and ids[: min(2, stop)] == [bos, bos] else 0, stop)

    def encodes_like(self, other: LanguageModel) -> bool:
        """Whether both make the same token ids of any plain text.

        Chat templates may differ; so may truncation and padding, which a saved tokenizer carries along and which are
        set anew whenever it is called.
        """
        return _encoding(self.tokenizer) == _encoding(other.tokenizer)

    def render_chat(self, messages: Sequence[dict[str, str]], *, answered: bool = False) -> str:
        """The conversation as text, open for the assistant's answer (BOS included where the template writes one).

        With `answered` the last message is the assistant's own, and nothing is opened.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise UserError(f"{self.path} has no chat template; set its prompt to few-shot")
        return str(
            self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered)
        )

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of a rendered conversation, which already holds its special tokens, so none are added."""
        return tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens_at(self, text: str, start: int, stop: int, *, rendered: bool = False) -> range:
        """Which token ids of a prompt hold any of its characters start:stop, as indices into `encode(text)`, or into
        `encode_rendered(text)`.

        Raises:
            UserError: a tokenizer that does not say where in the text its tokens lie, or no such token.
        """
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.path} has a slow tokenizer, which does not say where a question's tokens lie")
        encoded = self.tokenizer(text, add_special_tokens=not rendered, return_offsets_mapping=True)
        kept = slice(None) if rendered else self._kept(list(encoded["input_ids"]))
        spans = list(encoded["offset_mapping"])[kept]
        found = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        if not found:
            raise UserError(f"{self.path}: no token holds {text[start:stop]!r}")
        return range(found[0], found[-1] + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out, spaces as the model wrote them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pick_device(name: str) -> torch.device:
    """ "auto" -> CUDA, else MPS, else CPU; any other name must exist on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; one of auto, cpu, cuda, cuda:N, mps, balanced") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} asked for, this machine has {torch.cuda.device_count()} CUDA devices; use auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' asked for, which this machine has not; use auto")
    return device


def check_path(path: str, revision: str | None = None, *, allow_pickle: bool = False) -> None:
    """Refuse, before anything is loaded, a path that cannot be a checkpoint.

    A path that names no existing folder is taken for a Hub id if it looks like one (`name` or `owner/name`).

    Raises:
        UserError: not a folder, no config.json, weights only as pickles, a revision of a local folder.
    """
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"no folder {path}; a model is a local folder or a Hub id such as EleutherAI/pythia-70m")
        return
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise UserError(f"{path} is not a model folder: it has no config.json")
    if revision is not None:
        raise UserError(f"{path} is a local folder, which has no revision {revision!r}; leave revision out")
    if not any(folder.glob("*.safetensors")) and not allow_pickle:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{path} has its weights only as pickles ({pickles[0]}), which can run code on loading; convert them "
                "to safetensors, or set allow_pickle: true for this model"
            )
        raise UserError(f"{path} has no weights: no *.safetensors beside config.json")


def weights_fingerprint(path: str, commit: str | None) -> str:
    """What tells two sets of weights apart: the commit for a Hub model, else a SHA-256 over its safetensors files.

    A file of up to 1 GiB is read whole; of a larger one its length and 1 MiB in every 64 MiB, which any training step
    changes.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"commit:{commit}"
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE:
                while block := stream.read(_SAMPLE):
                    digest.update(block)
            else:
                for offset in range(0, size, _STRIDE):
                    stream.seek(offset)
                    digest.update(stream.read(_SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"


def _encoding(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    return {key: value for key, value in whole.items() if key not in ("truncation", "padding")}


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    body = json.dumps(_encoding(tokenizer), sort_keys=True)
    return hashlib.sha256((body + str(tokenizer.chat_template)).encode()).hexdigest()[:16]


def _why_not(path: str, revision: str | None, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "is not a valid git identifier" in text or "Revision Not Found" in text or "RevisionNotFound" in text:
        return f"{path} has no revision {revision!r} on the Hub; leave revision out or name a branch, tag or commit"
    if "safetensors" in text and not Path(path).is_dir():
        return f"{path} has no safetensors weights; set allow_pickle: true for this model to load its pickles"
    if not Path(path).is_dir() and ("offline" in text or "connect" in text.lower() or "couldn't" in text.lower()):
        where = f" at revision {revision!r}" if revision else ""
        return f"cannot load {path}{where}: it is no local folder and the Hub cannot be reached or does not know it"
    return f"cannot load {path}: {text[:200]}"
