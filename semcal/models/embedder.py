"""A sentence-transformers checkpoint: texts as vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semcal.errors import UserError
from semcal.models.checkpoint import pick_device, weights_fingerprint


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
