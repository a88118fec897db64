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
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from semcal.errors import UserError, above, nearest
from semcal.models.control_tokens import ControlTokens, Spans
from semcal.models.formats.adapters import CONFIG, Parts, check_hub_adapter, load_tokenizer, parts_of
from semcal.models.formats.configuration import (
    check_architecture,
    check_generation_config,
    turning_points,
    warn_of_other_tokens,
)
from semcal.models.formats.dequantising import is_dequantised, to_dtype
from semcal.models.formats.gguf import ORIGINAL, is_gguf, parsed_once, source_of
from semcal.models.formats.merging import merge_adapter
from semcal.models.formats.quantisation_settings import describe, settings_of
from semcal.models.formats.quantised import check_quantised
from semcal.models.weights import (
    check_finite,
    check_path,
    computation,
    load_weights,
    memory_fingerprint,
    weights_fingerprint,
)
from semcal.sampling.records import LENGTH, Answered, Enumerated, Outcome, Prompt
from semcal.sampling.stopping import StopRule, cut, legible

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Answer:
    """One distinct answer.

    Attributes:
        text: Up to the stop string that ended it, exclusive, without special tokens and without the beginning of a
            character that `max_new_tokens` cut.
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
        quantised: How the weights are stored, and whether they were dequantised at load; "" if not quantised.
        base: Of an adapter alone, the model that it was merged into and the fingerprint of its weights; else "".
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    revision: str | None
    weights_hash: str
    tokenizer_hash: str
    quantised: str = ""
    base: str = ""

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
        adapter: str | None = None,
    ) -> LanguageModel:
        """Load a checkpoint.

        >>> model = semcal.LanguageModel.load("atlas:base", device="cpu")
        >>> model.context
        1024

        Args:
            path: Local folder (of a model, or of an adapter alone, which is merged into the base model that it names),
                GGUF file, Hub id, "atlas:base" for the bundled model (also atlas:sft, atlas:dpo, atlas:grpo), or
                "real:gemma-3-270m" for one that `python -m experiments.sample.real_models` fetched.
            revision: Branch, tag or commit on the Hub.
            dtype: "float32", "bfloat16" or "float16".
            device: "cpu", "cuda", "cuda:1", "mps", "auto" (the best single device), or "balanced" (spread over all
                GPUs by accelerate's device_map).
            allow_pickle: Also accept weights that exist only as pickles.
            trust_remote_code: Run code that comes with the checkpoint.
            adapter: What to do with an adapter that lies beside full weights: "apply" (merge it into them) or "ignore".

        Raises:
            UserError: not a model folder, unknown revision, no safetensors, unknown dtype or device; weights that do
                not fit config.json or are not finite; an adapter beside full weights, and `adapter` is None.
        """
        if not isinstance(path, str | Path):
            raise UserError(
                f"expected the folder or Hub id of a model, got a {type(path).__name__}; for a model that is in memory "
                "use LanguageModel.of(model, tokenizer)"
            )
        path = _place_of(path)
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}; expected one of {', '.join(DTYPES)}")
        check_path(str(path), revision, allow_pickle=allow_pickle, adapter=adapter)
        target = None if device == "balanced" else pick_device(device)
        parts = parts_of(str(path), revision, adapter)
        hub: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            if not Path(parts.weights).exists():
                check_hub_adapter(parts.weights, parts.revision, adapter)
            with parsed_once(parts.weights) as gguf:
                config = _config_of(parts, hub)
                _check_decoder_only(config, str(path))
                check_architecture(config, str(path))
                check_generation_config(parts.weights)
                quantised = describe(settings_of(config))
                plain = is_dequantised(config, target, merged=bool(parts.adapters))
                check_quantised(parts.weights, config, dequantised=plain)
                tokenizer = load_tokenizer(parts, config, **hub)
                model = load_weights(
                    AutoModelForCausalLM,
                    parts.weights,
                    allow_pickle=allow_pickle,
                    config=config,
                    dtype=_dtype_to_merge(parts, config, DTYPES[dtype]),
                    dequantised=plain,
                    # Quantised layers are made where they stay.
                    device_map=_device_map(target) if target is None or quantised else None,
                    revision=parts.revision,
                    **hub,
                )
        except UserError:
            raise
        except Exception as error:  # whatever a loader makes of a file that it cannot read
            raise UserError(_why_not(str(path), parts, error)) from error
        for folder in parts.adapters:
            model = merge_adapter(model, folder)
        if parts.adapters:
            if model.dtype != DTYPES[dtype]:
                to_dtype(model, DTYPES[dtype])
                model.config.dtype = DTYPES[dtype]
            check_finite(str(path), model)
        still = bool(getattr(model, "is_quantized", False))
        if target is not None and not still:
            torch.nn.Module.to(model, target)
        became = "kept so" if still else f"dequantised to {dtype} at load"
        model.requires_grad_(False)
        commit = getattr(config, "_commit_hash", None)
        warn_of_other_tokens(str(path), model, tokenizer)
        return cls(
            model=model,
            tokenizer=tokenizer,
            path=str(path),
            revision=revision,
            weights_hash=weights_fingerprint(str(path), commit, adapter=adapter),
            tokenizer_hash=_tokenizer_hash(tokenizer),
            quantised=gguf.quantised if gguf else quantised and f"{quantised}, {became}",
            base=f"{parts.weights} ({weights_fingerprint(parts.weights, commit)})" if parts.named else "",
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
            UserError: not a causal language model, not a tokenizer, or weights that are not in memory or not finite.
        """
        if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
            raise UserError(f"expected a causal language model of transformers, got a {type(model).__name__}")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(f"expected a tokenizer of transformers, got a {type(tokenizer).__name__}")
        _check_decoder_only(model.config, type(model).__name__)
        model.eval().requires_grad_(False)
        name = name or model.config.name_or_path or type(model).__name__
        weights_hash = memory_fingerprint(model)
        check_finite(name, model)
        quantised = describe(settings_of(model.config)) if getattr(model, "is_quantized", False) else ""
        return cls(model, tokenizer, name, None, weights_hash, _tokenizer_hash(tokenizer), quantised)

    @classmethod
    def without_weights(
        cls, path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, cached: bool = False
    ) -> LanguageModel:
        """Tokenizer and configuration alone, for looking at prompts; it computes nothing and has no hash of weights.

        With `cached` nothing is downloaded: what is not on this machine is not found.

        Raises:
            UserError: as `load`.
        """
        parts = parts_of(str(path), revision)
        hub: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": cached}
        try:
            with parsed_once(parts.weights):
                config = _config_of(parts, hub)
                _check_decoder_only(config, str(path))
                check_quantised(parts.weights, config, dequantised=True)
                tokenizer = load_tokenizer(parts, config, **hub)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(_why_not(str(path), parts, error)) from error
        return cls(model, tokenizer, str(path), revision, "", _tokenizer_hash(tokenizer))

    @property
    def device(self) -> torch.device:
        """Where token ids go (with device_map: the device of the embedding)."""
        return next(self.model.get_input_embeddings().parameters()).device

    @cached_property
    def input_size(self) -> int:
        """Number of token ids that the model can read."""
        return int(next(self.model.get_input_embeddings().parameters()).shape[0])

    @property
    def output_size(self) -> int:
        """Number of token ids that the output layer scores (often a few more than the tokenizer has)."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return int(getattr(head, "out_features", None) or next(head.parameters()).shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context(self) -> int:
        """Maximum number of positions that the model can attend to, in tokens."""
        most = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 0)
        return most if most > 0 else 2**31 - 1  # XLNet says -1

    def check_lengths(self, prompts: Sequence[Prompt], new: int) -> None:
        """Check that the model computes one law for prompts that are continued by up to `new` tokens.

        Raises:
            UserError: more tokens than its context; or lengths at which it rotates all positions anew (longrope,
                dynamic), so that what it read before would have to be read again.
        """
        longest = max(prompts, key=lambda p: len(p.ids))
        if len(longest.ids) + new > self.context:
            raise UserError(
                f"{self.path} has a context of {self.context} tokens, and the prompt {longest.key[:30]!r} has "
                f"{len(longest.ids)}, with {new} to come; shorten it, or lower max_new_tokens"
            )
        for kind, turn in turning_points(self.model.config).items():
            across = [p for p in prompts if len(p.ids) <= turn < len(p.ids) + new]
            if across:
                raise UserError(
                    f"{self.path} rotates all positions anew beyond {turn} tokens ({kind}), and the prompt "
                    f"{across[0].key[:30]!r} of {len(across[0].ids)} tokens may be continued beyond it; lower "
                    "max_new_tokens, or leave out long prompts"
                )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token id that ends an answer, from the tokenizer, the config and the generation config."""
        generation = getattr(self.model, "generation_config", None)
        sources: list[Any] = [self.tokenizer, self.model.config, generation]
        found = [getattr(source, "eos_token_id", None) for source in sources]
        ends = [i for ids in found if ids is not None for i in ([ids] if isinstance(ids, int | str) else ids)]
        if wrong := [i for i in ends if not isinstance(i, int)]:
            raise UserError(f"{self.path}: eos_token_id is {wrong[0]!r}; expected the id of a token, a number")
        return frozenset(int(i) for i in ends)

    @property
    def computation(self) -> dict[str, Any]:
        """What beside weights and tokenizer decides which answers are drawn: settings of the configuration, and the
        tokens that end an answer."""
        stored = {"quantised weights": self.quantised} if self.quantised else {}  # dequantised, or kept so on a GPU
        return computation(self.model.config) | {"end-of-sequence tokens": sorted(self.eos_ids)} | stored

    @property
    def has_chat_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer itself puts in front. Control tokens
        in the text are text.

        Raises:
            UserError: no text; a control token that the tokenizer cannot write as text.
        """
        ids, _ = self._encoded(text, None)
        if not ids:
            raise UserError("a prompt has no tokens; expected some text")
        return tuple(ids)

    def prompt(self, text: str) -> Prompt:
        """A plain prompt whose key is its text.

        Raises:
            UserError: no text; control tokens in it, which may be meant as such or as text.
        """
        if typed := self.control_tokens_in(text):
            raise UserError(
                f"the prompt {text[:30]!r} contains {typed[0]!r}; pass Prompt(key, model.encode_rendered(text)) if it "
                "is meant as the control token, Prompt(key, model.encode(text)) if as text"
            )
        return Prompt(text, self.encode(text))

    def control_tokens_in(self, text: str) -> list[str]:
        """The tokens that only a tokenizer or a chat template should write, as far as this text contains them."""
        return self._control_tokens.typed(text, [(0, len(text))])

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def _encoded(self, text: str, typed: Spans | None) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, from a fast tokenizer, their places in the text.

        Args:
            typed: Where a rendered conversation holds what someone typed; None for a plain prompt.
        """
        spans = [(0, len(text))] if typed is None else typed
        if found := self._control_tokens.typed(text, spans):
            if not self.tokenizer.is_fast:
                raise UserError(
                    f"{self.path} has a slow tokenizer, which takes {found[0]!r} in a question for its control token; "
                    "use a fast one"
                )
            ids, places = self._control_tokens.encode(text, spans, add_special_tokens=typed is None)
        else:
            fast = bool(self.tokenizer.is_fast)
            encoded = self.tokenizer(text, add_special_tokens=typed is None, return_offsets_mapping=fast)
            ids, places = [int(i) for i in encoded["input_ids"]], list(encoded["offset_mapping"]) if fast else []
        if ids and max(ids) >= self.input_size:
            raise UserError(
                f"{self.path}: its tokenizer writes token {max(ids)}, and the model reads {self.input_size}; the "
                "tokenizer belongs to another model, or was extended without it"
            )
        if typed is not None:
            return ids, places
        start, stop = int(ids[:2] == [self.tokenizer.bos_token_id] * 2), len(ids)  # some tokenizers begin twice
        while stop > start and ids[stop - 1] in self.eos_ids:  # and some end every text; a prompt stays open
            stop -= 1
        return ids[start:stop], places[start:stop]

    def encodes_like(self, other: LanguageModel) -> bool:
        """Whether both turn any plain text into the same token ids.

        Chat templates may differ, and so may truncation and padding, which are set at each call.
        """
        return _encoding(self.tokenizer) == _encoding(other.tokenizer)

    def render_chat(self, messages: Sequence[dict[str, str]], *, answered: bool = False) -> str:
        """The conversation as text, up to where the assistant's answer begins (with BOS if the template writes one).

        With `answered` the last message is the assistant's.

        Raises:
            UserError: the tokenizer has no chat template, or its template refuses this conversation.
        """
        if not self.has_chat_template:
            raise UserError(f"{self.path} has no chat template; set its prompt to few-shot")
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered)
            )
        except Exception as error:  # a template may fail in any way
            raise UserError(
                f"{self.path}: its chat template refuses a conversation ({' '.join(str(error).split())[:120]}); "
                "correct chat_template.jinja, or set its prompt to few-shot"
            ) from error

    @cached_property
    def turn_ends(self) -> tuple[str, ...]:
        """What ends an assistant's answer by the chat template, as stop strings, beside the end-of-sequence tokens.

        It is what the template writes after an answer: at the end of a conversation or, if it writes nothing there,
        before the next question.

        Raises:
            UserError: as `render_chat`.
        """
        asked, answer = {"role": "user", "content": "Qwxq"}, {"role": "assistant", "content": "Vzxv"}
        begins = self.render_chat([asked]).rpartition(asked["content"])[2]
        for conversation in ([asked, answer], [asked, answer, asked]):
            try:
                _, shown, rest = self.render_chat(conversation, answered=True).rpartition(answer["content"])
            except UserError:
                continue
            written = rest.partition(asked["content"])[0]
            if not shown or not written.strip():
                continue
            before, token = self._control_tokens.first(written)
            if before.strip() and begins.rstrip().endswith(before.strip()):
                continue  # a template that always ends where an answer begins
            if not before.strip():
                return () if self._control_tokens.ids[token] in self.eos_ids else (token,)
            return (before.strip() if conversation[-1] is answer else before.rstrip(),)
        return ()

    def encode_rendered(self, text: str, typed: Spans = ()) -> tuple[int, ...]:
        """Token ids of a rendered conversation, which already contains its special tokens.

        Args:
            typed: The parts of it that someone typed, start and stop in characters; control tokens in them are text.

        Raises:
            UserError: a control token that the tokenizer cannot write as text.
        """
        return tuple(self._encoded(text, typed)[0])

    def tokens_at(self, text: str, start: int, stop: int, *, rendered: bool = False) -> range:
        """The tokens of a prompt that hold any of its characters start:stop, as indices into `encode(text)`, or into
        `encode_rendered(text, [(start, stop)])` if it is `rendered`.

        Raises:
            UserError: a tokenizer that does not report the places of its tokens in the text, or no such token.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{self.path} has a slow tokenizer, which does not report the places of tokens; use a fast one"
            )
        _, places = self._encoded(text, [(start, stop)] if rendered else None)
        found = [i for i, (a, b) in enumerate(places) if a < stop and b > start]
        if not found:
            raise UserError(f"{self.path}: no token holds {text[start:stop]!r}")
        return range(found[0], found[-1] + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens, with spaces as the model wrote them; bytes that are no
        character are "\ufffd"."""
        text = self._decoded(ids)
        return self._decoded(legible(ids, self._bytes)) if "\ufffd" in text and self._bytes else text

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def _bytes(self) -> dict[int, int]:
        """The tokens that stand for single bytes (byte fallback), and those bytes; none for most tokenizers."""
        vocabulary = self.tokenizer.get_vocab()
        tokens = {vocabulary[name]: byte for byte in range(256) if (name := f"<0x{byte:02X}>") in vocabulary}
        return tokens if len(tokens) == 256 and self._decoded([vocabulary["<0x41>"]]) == "A" else {}

    def stop_rule(self, stop: Sequence[str]) -> StopRule:
        """The model's end-of-sequence tokens and these stop strings, which may name special and other added tokens."""
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        ends = {added[s] for s in stop if s in added}
        # An added token that is not special is text, too: Gemma has one for a line break and one for two.
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return StopRule(self.decode, [s for s in stop if s not in special], self.eos_ids | ends, self.output_size)

    def in_words(self, found: Answered | Enumerated, stop: Sequence[str]) -> tuple[Answer, ...]:
        """The sampled or enumerated answers of one question as text."""
        if isinstance(found, Answered):
            return tuple(Answer(self._words(s, stop), s.ids, s.count, s.logprob, s.finish) for s in found.samples)
        return tuple(Answer(self._words(o, stop), o.ids, None, o.logprob, o.finish) for o in found.outcomes)

    def _words(self, outcome: Outcome, stop: Sequence[str]) -> str:
        """The text before what stopped it, without the beginning of a character that the last token did not finish."""
        ended = bool(outcome.ids) and outcome.ids[-1] in self.eos_ids  # which may be a token that is not special
        text = cut(self.decode(outcome.ids[:-1] if ended else outcome.ids), stop)
        return text.removesuffix("\ufffd") if outcome.finish == LENGTH else text


def _place_of(path: str | Path) -> str | Path:
    """Where a checkpoint is that has one of the names of this project, `atlas:STAGE` or `real:NAME`."""
    prefix, colon, name = str(path).partition(":")
    if colon and prefix == "atlas":
        return above("experiments.atlas.weights").bundled(name)
    if colon and prefix == "real":
        return above("experiments.sample.real_models").real_model(name)
    return path


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


def _device_map(target: torch.device | None) -> str:
    """Where transformers puts weights as it reads them; what is quantised may never move to another device."""
    return "balanced" if target is None else str(target) if target.type == "cuda" else "cpu"


def _dtype_to_merge(parts: Parts, config: PretrainedConfig, asked: torch.dtype) -> torch.dtype:
    """The dtype in which weights are loaded: float32 where adapters are added to what rounding would change first, so
    that each weight is rounded once, with what was added."""
    exact = not parts.adapters or (len(parts.adapters) == 1 and config.dtype == asked)
    return asked if exact else torch.float32


def _config_of(parts: Parts, hub: dict[str, Any]) -> PretrainedConfig:
    with source_of(parts.weights) as source:
        config = AutoConfig.from_pretrained(**source, revision=parts.revision, **hub)
    config.name_or_path = parts.weights
    return config


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


def _why_not(path: str, parts: Parts, error: Exception) -> str:
    """What kept a checkpoint from being loaded, in one line; of an adapter alone, its base model."""
    if parts.named and not isinstance(error, UserError):
        own = Parts(parts.weights, parts.revision, (), named=False)
        return f"{path}: {_why_not(parts.weights, own, error)}; {CONFIG} names this base model"
    revision, text = parts.revision, " ".join(str(error).split())
    if "is not a valid git identifier" in text or "Revision Not Found" in text or "RevisionNotFound" in text:
        return f"{path} has no revision {revision!r} on the Hub; leave revision out or name a branch, tag or commit"
    if "safetensors" in text and not Path(path).exists():
        return f"{path} has no safetensors weights; set allow_pickle: true for this model to load its pickles"
    if not Path(path).exists() and ("offline" in text or "connect" in text.lower() or "couldn't" in text.lower()):
        where = f" at revision {revision!r}" if revision else ""
        return f"cannot load {path}{where}: it is not a local folder, and the Hub cannot be reached or does not have it"
    if isinstance(error, SafetensorError):
        return f"cannot load {path}: {_damaged(Path(path))} is damaged or cut short ({text[:80]}); copy it again"
    if isinstance(error, json.JSONDecodeError):
        return f"cannot load {path}: one of its JSON files is damaged ({text[:80]}); copy it again"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"cannot load {path}: {error.filename} is missing; copy it too"
    if "Unrecognized configuration class" in text:
        kind = text.partition("<class '")[2].partition("'>")[0].rpartition(".")[2] or "model of its class"
        return (
            f"cannot load {path}: transformers has no causal language model for a {kind}; choose a decoder-only model"
        )
    if isinstance(error, OSError | ValueError | ImportError | RuntimeError):
        return f"cannot load {path}: {text if len(text) <= 200 else text[:200].rpartition(' ')[0] + ' …'}"
    what = f"does not describe a model ({type(error).__name__}: {text[:120]})"
    if is_gguf(path):
        return f"cannot load {path}: its header {what}; download it again, or {ORIGINAL}"
    return f"cannot load {path}: config.json {what}; restore it"


def _damaged(folder: Path) -> str:
    """The first file of weights that cannot be opened."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return file.name
    return "a file of its weights"
