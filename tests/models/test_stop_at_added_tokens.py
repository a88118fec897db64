"""A stop string that is also an added token ends an answer wherever it is written, not as that token alone."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from semcal import LanguageModel
from tests.conftest import save_checkpoint, word_tokenizer


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory):
    """Line breaks are added tokens that are not special, one for a single and one for a double break, as in Gemma."""
    folder = save_checkpoint(tmp_path_factory.mktemp("stops") / "m")
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.save_pretrained(folder)
    return LanguageModel.load(folder, device="cpu")


def test_a_double_line_break_holds_a_single_one(gemma_like):
    rule, ids = gemma_like.stop_rule(["\n"]), gemma_like.tokenizer.get_vocab()
    assert rule.stop == ("\n",)
    assert rule.certain[ids["\n"]]
    assert rule.certain[ids["\n\n"]]
    assert not rule.certain[ids["red"]]


def test_a_special_token_is_no_text(gemma_like):
    rule, ids = gemma_like.stop_rule(["<turn>", "\n"]), gemma_like.tokenizer.get_vocab()
    assert rule.stop == ("\n",)
    assert rule.certain[ids["<turn>"]]
