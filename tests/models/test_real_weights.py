"""The two real models: their files, their words and their numbers."""

from __future__ import annotations

import pytest
import torch

from experiments.sample.real_models import REAL_MODELS, real_model
from semcal import LanguageModel, UserError

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=list(REAL_MODELS))
def model(request):
    try:
        return request.param, LanguageModel.load(real_model(request.param), device="cpu")
    except UserError as error:
        pytest.skip(str(error))


def greedy(model: LanguageModel, prompt: str, tokens: int) -> str:
    ids = torch.tensor([model.encode(prompt)])
    made = model.model.generate(ids, max_new_tokens=tokens, do_sample=False)  # pyright: ignore[reportCallIssue]
    return model.decode(made[0, ids.shape[1] :].tolist())


HAMLET = "Question: What is the capital of France?\nAnswer: Paris\n\nQuestion: Who wrote Hamlet?\nAnswer:"


def test_each_says_what_it_is_known_to_say_and_is_what_it_is_said_to_be(model):
    name, loaded = model
    if name == "gemma-3-270m":
        assert greedy(loaded, HAMLET, 1) == " Shakespeare"
        assert loaded.quantised == "GGUF Q4_K_M (tensors: 109 F32, 81 Q5_0, 27 Q4_K, 10 Q8_0, 9 Q6_K)"
        assert not loaded.has_chat_template
        assert loaded.output_size == 262_144
    else:
        assert greedy(loaded, "The capital of France is", 2) == " Paris."
        assert loaded.quantised == "GGUF Q4_1 (tensors: 210 Q4_1, 61 F32, 1 Q8_0)"
        assert loaded.has_chat_template
        assert loaded.output_size == 49_152


def test_a_saved_folder_has_the_same_logits(model, tmp_path):
    _, loaded = model
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = LanguageModel.load(tmp_path, device="cpu")
    ids = torch.tensor([loaded.encode(HAMLET)])
    assert again.encode(HAMLET) == loaded.encode(HAMLET)
    torch.testing.assert_close(again.model(ids).logits, loaded.model(ids).logits, atol=0, rtol=0)
