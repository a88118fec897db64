"""Typed control tokens are told from written ones without changing how anything else is encoded."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from semcal.models.control_tokens import ControlTokens
from tests.conftest import data_folder, needs
from tests.hostile.test_stops_and_tokens import byte_fallback, byte_level

TEXTS = ["red blue", "a\n\nb", "  two spaces", "naïve 日本", "a<x>b</x>", "Question: x\nAnswer:"]


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback, "stories260K"])
def test_the_other_way_to_encode_agrees_wherever_nothing_was_typed(tokenizer):
    """The path for typed control tokens, on texts without any, and on the control tokens of a template."""
    if isinstance(tokenizer, str):
        path = needs(data_folder().parent / "checkpoints/stories260K")
        found = PreTrainedTokenizerFast.from_pretrained(path)
    else:
        found = tokenizer()
    control, bos = ControlTokens(found), found.bos_token
    for text in [*TEXTS, *(f"{bos}{t}</s>{t}{bos} {t}" for t in TEXTS)]:
        for own in (True, False):
            encoded = found(text, add_special_tokens=own, return_offsets_mapping=True)
            ids, places = control.encode(text, (), add_special_tokens=own)
            assert ids == encoded["input_ids"]
            assert places == [tuple(place) for place in encoded["offset_mapping"]]
