"""What sampling holds in memory beside the weights: keys and values, and the logits and temporaries of a pass.

Known from a configuration alone, so that a budget and a dry run count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from semcal.sampling.decoding.decoders import PREFILL_TOKENS
from semcal.sampling.decoding.output_layer import BLOCK, LARGE
from semcal.sampling.drawing import NUMBERS_AT_ONCE

MEMORY_SHARE = {"cpu": 0.25, "mps": 0.25, "cuda": 0.6}  # of free memory
_ROWS = {"cpu": 768, "mps": 768, "cuda": 2048}
_LOGITS_AT_ONCE = 2**28  # of [row, vocab] in one pass
_KV_ON_CPU = 2**31  # bytes; more rows are no faster there, since a pass is limited by arithmetic long before
_WIDTHS, _INNER_WIDTHS = 8, 3  # tensors of a layer that are held at once: as wide as the stream, and as its MLP
_COPIES, _SORTED_COPIES = 12, 40  # bytes a number: scaled, softmax and padded; with top-p sorted, too
_DRAWS = 28  # bytes a number of a block that is drawn from: in float32, and three times in float64
_TRIED = 32  # positions whose logits the choice of a path holds at once


@dataclass(frozen=True)
class Footprint:
    """What a model needs on a kind of device, in bytes where not said.

    Attributes:
        config: Of its text model.
        itemsize: Of its dtype.
        device: "cpu", "cuda" or "mps".
        sorts: Whether draws sort the vocabulary (top-k, top-p), for which all logits are computed.
    """

    config: PretrainedConfig
    itemsize: int
    device: str
    sorts: bool = False

    @property
    def position(self) -> int:
        """Keys and values of one token position."""
        return kv_values(self.config) * self.itemsize

    @property
    def rows(self) -> int:
        """Answers that are decoded in one pass, a number."""
        at_once = max(16, _LOGITS_AT_ONCE // self.config.vocab_size)
        return min(_ROWS.get(self.device, 768), at_once)

    def a_pass(self, rows: int, prompt_tokens: int = PREFILL_TOKENS) -> int:
        """Logits and temporaries of the largest pass.

        Args:
            rows: Answers that are decoded in one.
            prompt_tokens: That are read in one, at most.
        """
        vocabulary = self.config.vocab_size
        inner = getattr(self.config, "intermediate_size", None) or 4 * self.config.hidden_size
        if isinstance(inner, list | tuple):
            inner = max(inner)
        a_token = (_WIDTHS * self.config.hidden_size + _INNER_WIDTHS * inner) * self.itemsize
        if self.device == "cpu" and vocabulary >= LARGE and not self.sorts:  # block by block
            drawing = rows * BLOCK * (self.itemsize + 4) + 3 * rows * BLOCK * _DRAWS
        else:
            numbers = min(rows * vocabulary, max(NUMBERS_AT_ONCE, vocabulary))
            drawing = rows * vocabulary * self.itemsize + numbers * (_SORTED_COPIES if self.sorts else _COPIES)
        tried = _TRIED * vocabulary * (self.itemsize + _COPIES)
        return max(tried, min(prompt_tokens, PREFILL_TOKENS) * a_token, rows * a_token + drawing)

    def positions(self, free: int, rows: int, weights: int) -> int:
        """Keys and values that may be held, in token positions.

        Args:
            free: Memory of the device that is free once the weights are loaded.
            rows: Answers that are decoded in one pass.
            weights: Size of the model.
        """
        left = int(free * MEMORY_SHARE.get(self.device, 0.25)) - self.a_pass(rows)
        if self.device == "cpu":
            left = min(left, max(_KV_ON_CPU, weights))
        return max(1, left // self.position)


def sorts(top_k: int | None, top_p: float | None) -> bool:
    """Whether draws sort the vocabulary."""
    return top_k is not None or top_p not in (None, 1)


def kv_values(config: PretrainedConfig) -> int:
    """Number of values that one token position stores in the keys and values of all layers."""
    queries = getattr(config, "num_attention_heads", 1)  # a model without attention has a state instead
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return 2 * config.num_hidden_layers * heads * width
