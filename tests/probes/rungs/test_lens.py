from pathlib import Path

import numpy as np
import pytest
import torch

from probes.activations.capture import capture
from probes.rungs.lens import LensProbe, final_norm, first_token_facts, first_tokens, lens_log_probabilities
from semcal import LanguageModel
from tests.conftest import CONFIGS, MORE_CONFIGS, save_checkpoint


def through(model: LanguageModel, residual: np.ndarray) -> np.ndarray:
    return np.concatenate(list(lens_log_probabilities(model, residual)))


@pytest.mark.parametrize("architecture", [*CONFIGS, "gemma2", "olmo2"])
def test_through_the_last_layer_it_is_the_models_own_next_token(architecture: str, tmp_path: Path) -> None:
    assert architecture in CONFIGS | MORE_CONFIGS
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    asked = ["red blue green", "one two"]
    residual = capture(model, asked).values
    with torch.inference_mode():
        own = [model.model(torch.tensor([model.encode(text)])).logits[0, -1].double().log_softmax(0) for text in asked]
    np.testing.assert_allclose(through(model, residual[:, -1]), torch.stack(own).numpy(), atol=1e-5)
    assert not final_norm(model.model)._forward_pre_hooks
    earlier = through(model, residual[:, 0])
    assert np.abs(earlier - torch.stack(own).numpy()).max() > 1e-2


def test_the_entropy_is_that_of_the_next_token(tiny: LanguageModel) -> None:
    residual = capture(tiny, ["red blue", "one"]).values[:, -1]
    p = np.exp(through(tiny, residual))
    np.testing.assert_allclose(first_token_facts(tiny, residual)[:, 0], -(p * np.log(p)).sum(1))


def test_tokens_are_summed_over_forms_shared_among_classes_and_the_rest_goes_to_the_wordless(
    tiny: LanguageModel,
) -> None:
    residual = capture(tiny, ["red blue", "one"]).values[:, -1]
    p = np.exp(through(tiny, residual))
    Y = np.array([[1, 0, 0], [0, 1, 0.0]])
    found = LensProbe(tiny, [(3, 4), (4, 5), ()]).fit(residual, Y).predict(residual)
    first, second = p[:, 3] + p[:, 4] / 2, p[:, 4] / 2 + p[:, 5]
    np.testing.assert_allclose(found, np.stack([first, second, 1 - first - second], 1), atol=1e-9)
    named = LensProbe(tiny, [(3, 4), (4, 5)]).fit(residual, Y[:, :2]).predict(residual)
    np.testing.assert_allclose(named, np.stack([first, second], 1) / (first + second)[:, None], atol=1e-9)
    with pytest.raises(ValueError, match="3 classes, but first tokens are given for 2"):
        LensProbe(tiny, [(3,), (4,)]).fit(residual, Y)


def test_first_tokens_are_read_in_context(tiny: LanguageModel) -> None:
    red, one, two = (tiny.encode(word)[-1] for word in ("red", "one", "two"))
    found = first_tokens(tiny, [["red blue", "one"], ["two"], []], context="Answer: ")
    assert found == [tuple(sorted((red, one))), (two,), ()]
