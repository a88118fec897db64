"""Embeddings of the texts of classes, for probes that score a class by what it says.

Knows a model's embedding tables and tokenizer, or a caller's encoder; nothing of activations or targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semcal.arrays import FloatArray
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.semantics.class_table import UNEXPLORED, UNPARSED


class UnwritableError(UserError):
    """A tokenizer cannot write the text of a class."""


SPECIAL = {UNPARSED: "unparsed", UNEXPLORED: "unexplored"}  # classes that no answer names
Encoder = Callable[[Sequence[str]], np.ndarray]  # texts -> [text, e]


def class_features(model: LanguageModel, classes: Sequence[str], *, encoder: Encoder | None = None) -> FloatArray:
    """What a model makes of the texts of classes before any context, side by side: [class, feature] float64.

    The mean of the input embeddings of a text's tokens, and the row of the unembedding for its first token, a space
    before the text. `probes.rungs.bilinear.class_axes` standardises them and reduces them to axes.

    Args:
        model: whose tables are read; weights alone, nothing is run.
        classes: labels; "(unparsed)" and "(unexplored)" are read as the words, unless a class of answers is that word.
        encoder: further features from the texts, e.g. a sentence encoder's; finite, [text, any].

    Raises:
        UserError: two classes with the same text, or a text that the tokenizer cannot write.
        ValueError: an encoder that returns another shape.
    """
    texts = class_texts(classes)
    ids = [_token_ids(model, text, label) for text, label in zip(texts, classes, strict=True)]
    first = _rows(model.model.get_output_embeddings(), [own[0] for own in ids])
    parts = [text_embeddings(model, ids), first]
    if encoder is not None:
        encoded = np.asarray(encoder(texts), dtype=np.float64)
        if encoded.ndim != 2 or len(encoded) != len(texts):
            raise ValueError(f"the encoder returned {encoded.shape} for {len(texts)} texts; expected [text, e]")
        parts.append(encoded)
    return np.concatenate(parts, axis=1)


def class_texts(classes: Sequence[str]) -> list[str]:
    """[class] what is embedded.

    Raises:
        UserError: two classes with the same text.
    """
    answers = {label.strip() for label in classes}
    special = {label: label if word in answers else word for label, word in SPECIAL.items()}
    texts = [special.get(label, label).strip() for label in classes]
    seen: dict[str, str] = {}
    for text, label in zip(texts, classes, strict=True):
        if text in seen:
            raise UserError(
                f"classes {seen[text]!r} and {label!r} have the same text {text!r}, so that no probe can tell them "
                "apart; choose a B that makes them one class"
            )
        seen[text] = label
    return texts


def text_embeddings(model: LanguageModel, ids: Sequence[Sequence[int]]) -> FloatArray:
    """The mean of the model's input embeddings over the tokens of each text: [text, e]."""
    whole = _rows(model.model.get_input_embeddings(), [token for own in ids for token in own])
    starts = np.cumsum([0, *map(len, ids[:-1])])
    return np.add.reduceat(whole, starts) / np.array([len(own) for own in ids])[:, None]


def _token_ids(model: LanguageModel, text: str, label: str) -> tuple[int, ...]:
    """Of a text with a space before it."""
    ids = model.encode_rendered(f" {text}", [(0, len(text) + 1)]) if text else ()
    unknown = model.tokenizer.unk_token_id
    if all(token == unknown for token in ids):
        raise UnwritableError(
            f"the tokenizer of {model.path} cannot write the class {label!r}; leave its questions out, choose a B that "
            "names it otherwise, or embed the classes with a sentence encoder"
        )
    return ids


def _rows(table, ids: Sequence[int]) -> FloatArray:
    """Rows [token, e] of an embedding table, or of the weights of an output layer."""
    weight = next(table.parameters()).detach()
    return weight[list(ids)].double().cpu().numpy()
