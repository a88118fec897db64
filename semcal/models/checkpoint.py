"""A language model and its tokenizer, from a local folder, the Hub or memory, with everything that a manifest records.

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from semcal.errors import UserError, above, nearest
from semcal.sampling.records import Answered, Enumerated
from semcal.sampling.stopping import StopRule, cut

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WHOLE, _SAMPLE, _STRIDE = 2**30, 2**20, 2**26  # bytes


@dataclass(frozen=True)
class Answer:
    """One distinct answer.

    Attributes:
        text: Up to the stop string that ended it, exclusive; special tokens are left out.
        ids: Its token ids, including the last one; empty for a served model.
        count: How many of the M samples are this answer; None if it was enumerated instead of sampled.
        logprob: Log-probability of its token sequence, in nats; None if a server does not give it.
        finish: "stop" or "length".
    """

    text: str
    ids: tuple[int, ...]
    count: int | None
    logprob: float | None
    finish: str


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to be sampled, and where it came from.

    Attributes:
        model: The plain Hugging Face model in eval mode, with its own attention.
        tokenizer: Its tokenizer.
        path: Local folder or Hub id, or the name of a model that was in memory.
        revision: Requested branch, tag or commit; None for a local folder or the default branch.
        weights_hash: Fingerprint of the weights (see `weights_fingerprint` and `memory_fingerprint`).
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

        >>> model = semcal.LanguageModel.load("atlas:base", device="cpu")
        >>> model.context
        1024

        Args:
            path: Local folder, Hub id, or "atlas:base" for the bundled model (also atlas:sft, atlas:dpo, atlas:grpo).
            revision: Branch, tag or commit on the Hub.
            dtype: "float32", "bfloat16" or "float16".
            device: "cpu", "cuda", "cuda:1", "mps", "auto" (the best single device), or "balanced" (spread over all
                GPUs by accelerate's device_map).
            allow_pickle: Also accept weights that exist only as pickles.
            trust_remote_code: Run code that comes with the checkpoint.

        Raises:
            UserError: not a model folder, unknown revision, no safetensors, unknown dtype or device.
        """
        if not isinstance(path, str | Path):
            raise UserError(
                f"expected the folder or Hub id of a model, got a {type(path).__name__}; for a model that is in memory "
                "use LanguageModel.of(model, tokenizer)"
            )
        if str(path).startswith("atlas:"):
            path = above("experiments.atlas.weights").bundled(str(path).removeprefix("atlas:"))
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}; expected one of {', '.join(DTYPES)}")
        check_path(str(path), revision, allow_pickle=allow_pickle)
        target = None if device == "balanced" else pick_device(device)
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(path, **hub)
            _check_decoder_only(config, str(path))
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
            model = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=DTYPES[dtype],
                use_safetensors=None if allow_pickle else True,
                device_map="balanced" if target is None else None,
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
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "") -> LanguageModel:
        """A Hugging Face model that is already in memory. It is put into eval mode and its parameters are frozen.

        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> mine, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        >>> model = semcal.LanguageModel.of(mine, tokenizer, name="mine")
        >>> model.path, model.weights_hash[:7]
        ('mine', 'memory:')

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            name: What manifests and errors call it; by default the name in its configuration.

        Raises:
            UserError: not a causal language model, not a tokenizer, or weights that are not in memory.
        """
        if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
            raise UserError(f"expected a causal language model of transformers, got a {type(model).__name__}")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(f"expected a tokenizer of transformers, got a {type(tokenizer).__name__}")
        _check_decoder_only(model.config, type(model).__name__)
        model.eval().requires_grad_(False)
        name = name or model.config.name_or_path or type(model).__name__
        return cls(model, tokenizer, name, None, memory_fingerprint(model), _tokenizer_hash(tokenizer))

    @classmethod
    def without_weights(
        cls, path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, cached: bool = False
    ) -> LanguageModel:
        """Tokenizer and configuration alone, for looking at prompts; it computes nothing and has no hash of weights.

        With `cached` nothing is downloaded: what is not on this machine is not found.

        Raises:
            UserError: as `load`.
        """
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": cached}
        try:
            config = AutoConfig.from_pretrained(path, **hub)
            _check_decoder_only(config, str(path))
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(_why_not(str(path), revision, error)) from error
        return cls(model, tokenizer, str(path), revision, "", _tokenizer_hash(tokenizer))

    @property
    def device(self) -> torch.device:
        """Where token ids go (with device_map: the device of the embedding)."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def output_size(self) -> int:
        """Number of token ids that the output layer scores (often a few more than the tokenizer has)."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return next(head.parameters()).shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context(self) -> int:
        """Maximum number of positions that the model can attend to, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token id that ends an answer, from the tokenizer, the config and the generation config."""
        generation = getattr(self.model, "generation_config", None)
        sources: list[Any] = [self.tokenizer, self.model.config, generation]
        found = [getattr(source, "eos_token_id", None) for source in sources]
        return frozenset(i for ids in found if ids is not None for i in ([ids] if isinstance(ids, int) else ids))

    @property
    def has_chat_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer itself puts in front."""
        ids = list(self.tokenizer(text)["input_ids"])
        kept = ids[self._kept(ids)]
        if not kept:
            raise UserError("a prompt has no tokens; expected some text")
        return tuple(int(i) for i in kept)

    def _kept(self, ids: list[int]) -> slice:
        stop = len(ids)
        while stop and ids[stop - 1] in self.eos_ids:  # some tokenizers end every text; a prompt stays open
            stop -= 1
        bos = self.tokenizer.bos_token_id
        return slice(1 if bos is not None and ids[: min(2, stop)] == [bos, bos] else 0, stop)

    def encodes_like(self, other: LanguageModel) -> bool:
        """Whether both turn any plain text into the same token ids.

        Chat templates may differ, and so may truncation and padding, which are set at each call.
        """
        return _encoding(self.tokenizer) == _encoding(other.tokenizer)

    def render_chat(self, messages: Sequence[dict[str, str]], *, answered: bool = False) -> str:
        """The conversation as text, up to where the assistant's answer begins (with BOS if the template writes one).

        With `answered` the last message is the assistant's.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise UserError(f"{self.path} has no chat template; set its prompt to few-shot")
        return str(
            self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered)
        )

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of a rendered conversation, which already contains its special tokens."""
        return tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokens_at(self, text: str, start: int, stop: int, *, rendered: bool = False) -> range:
        """The tokens of a prompt that hold any of its characters start:stop, as indices into `encode(text)`, or into
        `encode_rendered(text)` if it is `rendered`.

        Raises:
            UserError: a tokenizer that does not report the places of its tokens in the text, or no such token.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{self.path} has a slow tokenizer, which does not report the places of tokens; use a fast one"
            )
        encoded = self.tokenizer(text, add_special_tokens=not rendered, return_offsets_mapping=True)
        kept = slice(None) if rendered else self._kept(list(encoded["input_ids"]))
        spans = list(encoded["offset_mapping"])[kept]
        found = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        if not found:
            raise UserError(f"{self.path}: no token holds {text[start:stop]!r}")
        return range(found[0], found[-1] + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens, with spaces as the model wrote them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def stop_rule(self, stop: Sequence[str]) -> StopRule:
        """The model's end-of-sequence tokens and these stop strings, which may name special tokens."""
        special = set(stop) & set(self.tokenizer.all_special_tokens)
        ends = {self.tokenizer.get_vocab()[s] for s in special}
        return StopRule(self.decode, [s for s in stop if s not in special], self.eos_ids | ends, self.output_size)

    def in_words(self, found: Answered | Enumerated, stop: Sequence[str]) -> tuple[Answer, ...]:
        """The sampled or enumerated answers of one question as text."""
        if isinstance(found, Answered):
            samples = found.samples
            return tuple(Answer(cut(self.decode(s.ids), stop), s.ids, s.count, s.logprob, s.finish) for s in samples)
        return tuple(Answer(cut(self.decode(o.ids), stop), o.ids, None, o.logprob, o.finish) for o in found.outcomes)


def pick_device(name: str) -> torch.device:
    """A device of this machine; "auto" is CUDA, else MPS, else CPU.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; expected one of auto, cpu, cuda, cuda:N, mps, balanced") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not available: this machine has {torch.cuda.device_count()} CUDA devices; use auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not available on this machine; use auto")
    return device


def check_path(path: str, revision: str | None = None, *, allow_pickle: bool = False) -> None:
    """Check, before anything is loaded, whether a path can be a checkpoint.

    A path that does not exist counts as a Hub id if it looks like one (`name` or `owner/name`).

    Raises:
        UserError: not a folder, no config.json, weights only as pickles, a revision of a local folder.
    """
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"no folder {path}; expected a local folder or a Hub id such as EleutherAI/pythia-70m")
        return
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise UserError(f"{path} is not a model folder: it has no config.json")
    if revision is not None:
        raise UserError(f"{path} is a local folder, which has no revision {revision!r}; leave revision out")
    if not any(folder.glob("*.safetensors")) and not allow_pickle:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{path} has its weights only as pickles ({pickles[0]}), which can run code when loaded; convert them "
                "to safetensors, or set allow_pickle: true for this model"
            )
        raise UserError(f"{path} has no weights: expected *.safetensors next to config.json")


def weights_fingerprint(path: str, commit: str | None) -> str:
    """The commit of a Hub model, else a SHA-256 of the weight files: two sets of weights differ in it.

    Files of up to 1 GiB are read whole; of larger ones, the length and 1 MiB in every 64 MiB, which any training step
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
            if size <= _WHOLE:
                while block := stream.read(_SAMPLE):
                    digest.update(block)
            else:
                for offset in range(0, size, _STRIDE):
                    stream.seek(offset)
                    digest.update(stream.read(_SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"


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


def _check_decoder_only(config: PretrainedConfig, path: str) -> None:
    """Refuse an encoder-decoder: its decoder alone would answer with embeddings that were never trained for it."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{path} is an encoder-decoder ({config.model_type}), and only decoder-only models can be sampled here; "
            "choose a causal language model"
        )


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
        return f"cannot load {path}{where}: it is not a local folder, and the Hub cannot be reached or does not have it"
    if "Unrecognized configuration class" in text:
        kind = text.partition("<class '")[2].partition("'>")[0].rpartition(".")[2] or "model of its class"
        return (
            f"cannot load {path}: transformers has no causal language model for a {kind}; choose a decoder-only model"
        )
    return f"cannot load {path}: {text if len(text) <= 200 else text[:200].rpartition(' ')[0] + ' …'}"
