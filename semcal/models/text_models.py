"""Models that compare texts: one for entailment, one for sentence embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from semcal.errors import UserError
from semcal.models.checkpoint import pick_device
from semcal.models.formats.dequantising import is_dequantised
from semcal.models.formats.quantised import check_quantised
from semcal.models.weights import check_encoder, check_path, load_weights, weights_fingerprint

_BATCH = 64


@dataclass
class EntailmentModel:
    """A sequence classifier with exactly one label for entailment.

    Attributes:
        model: The classifier, in eval mode.
        tokenizer: Its tokenizer.
        entails: Index of the label for entailment.
        name: Path and fingerprint of the weights.
        pairs_asked: Number of pairs so far.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    entails: int
    name: str
    pairs_asked: int = 0

    @classmethod
    def load(cls, path: str, *, revision: str | None = None, device: str = "auto") -> EntailmentModel:
        """Load a checkpoint.

        Args:
            path: Local folder or Hub id; weights as safetensors.
            revision: Branch, tag or commit on the Hub.
            device: As in `LanguageModel.load`.

        Raises:
            UserError: no such checkpoint, or not exactly one of its labels means entailment.
        """
        check_path(path, revision)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
            config = AutoConfig.from_pretrained(path, revision=revision)
            plain = is_dequantised(config, torch.device("cpu"))
            check_quantised(path, config, dequantised=plain)
            model = load_weights(
                AutoModelForSequenceClassification, path, config=config, dequantised=plain, revision=revision
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{path} cannot be loaded as a sequence classifier ({str(error).splitlines()[0]})"
            ) from error
        torch.nn.Module.to(model, pick_device(device))
        named = {int(i): str(label) for i, label in (model.config.id2label or {}).items()}
        found = [i for i, label in named.items() if label.lower().startswith("entail")]
        if len(found) != 1:
            raise UserError(
                f"{path} has the labels {', '.join(named.values())}, and exactly one must begin with 'entail'; "
                "choose a checkpoint trained on NLI, or name its labels in id2label of its config.json"
            )
        weights = weights_fingerprint(path, getattr(model.config, "_commit_hash", None))
        return cls(model, tokenizer, found[0], f"{path}@{weights[:23]}")

    @property
    def _longest(self) -> int:
        """Maximum length in tokens; RoBERTa counts two positions that it cannot use."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 514
        return min(self.tokenizer.model_max_length, positions - 2)

    @torch.inference_mode()
    def probability(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] = lambda *_: None
    ) -> np.ndarray:
        """[pair] probability in [0, 1] that the first text of a pair entails the second.

        Args:
            pairs: (premise, hypothesis); the longer of the two is cut to fit the model's context.
            progress: Called with the number of pairs done and their total.
        """
        by_length = np.argsort([len(a) + len(b) for a, b in pairs], kind="stable")[::-1]
        found = np.empty(len(pairs))
        for start in range(0, len(pairs), _BATCH):
            these = by_length[start : start + _BATCH]
            batch = self.tokenizer(
                [pairs[i][0] for i in these],
                [pairs[i][1] for i in these],
                padding=True,
                truncation="longest_first",
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.model.device)
            found[these] = self.model(**batch).logits.float().softmax(-1)[:, self.entails].cpu().numpy()
            self.pairs_asked += len(these)
            progress(start + len(these), len(pairs))
        return found


class Embedder:
    """Sentence embeddings.

    Args:
        path: Local folder or Hub id of a sentence-transformers model.
        device: As in `LanguageModel.load`.

    Raises:
        UserError: sentence-transformers is not installed, or cannot load the model.
    """

    def __init__(self, path: str, *, device: str = "auto") -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError("embeddings need sentence-transformers; pip install 'semcal[embeddings]'") from error
        if path.startswith((".", "/", "~")) and not Path(path).is_dir():
            raise UserError(f"no folder {path}; expected the local folder or Hub id of an embedding model")
        if (Path(path) / "config.json").is_file():
            check_path(path)
            check_encoder(path)
        try:
            self.model: Any = SentenceTransformer(path, device=str(pick_device(device)))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a sentence-transformers model ({str(error).splitlines()[0]})") from error
        self.name = f"{path}@{weights_fingerprint(path, None)[:23]}" if Path(path).is_dir() else path

    def embed(self, texts: Sequence[str], progress: Callable[[int, int], None] = lambda *_: None) -> np.ndarray:
        """Embeddings [text, d]; `progress` hears how many of how many texts are done."""
        found = []
        for start in range(0, len(texts), 1024):
            part = list(texts[start : start + 1024])
            found.append(self.model.encode(part, convert_to_numpy=True, show_progress_bar=False))
            progress(start + len(part), len(texts))
        return np.concatenate(found)
