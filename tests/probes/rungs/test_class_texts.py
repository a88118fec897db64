import numpy as np
import pytest

from probes.rungs.class_texts import class_features, class_texts
from semcal import LanguageModel
from semcal.errors import UserError


def test_a_class_is_the_mean_of_its_tokens_beside_the_output_row_of_the_first(tiny: LanguageModel) -> None:
    table = tiny.model.get_input_embeddings().weight.detach().numpy()  # pyright: ignore
    head = tiny.model.get_output_embeddings().weight.detach().numpy()  # pyright: ignore
    red, blue = tiny.encode("red")[-1], tiny.encode("blue")[-1]
    found = class_features(tiny, ["red", "red blue"])
    np.testing.assert_allclose(found[0], np.r_[table[red], head[red]], rtol=1e-6)
    np.testing.assert_allclose(found[1], np.r_[(table[red] + table[blue]) / 2, head[red]], rtol=1e-6)


def test_an_encoder_adds_features(tiny: LanguageModel) -> None:
    plain = class_features(tiny, ["red", "blue"])
    more = class_features(tiny, ["red", "blue"], encoder=lambda texts: np.array([[len(text)] for text in texts]))
    np.testing.assert_array_equal(more, np.c_[plain, [3, 4]])
    with pytest.raises(ValueError, match=r"returned \(2,\) for 2 texts"):
        class_features(tiny, ["red", "blue"], encoder=lambda texts: np.zeros(len(texts)))


def test_what_was_not_parsed_has_a_text_of_its_own() -> None:
    assert class_texts(["(unexplored)", "(unparsed)", "red"]) == ["unexplored", "unparsed", "red"]
    assert class_texts(["(unparsed)", "unparsed", "red"]) == ["(unparsed)", "unparsed", "red"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["red", ""], "cannot write the class ''; leave its questions out"),
        (["red", "   "], "cannot write the class '   '"),
        (["red", "\u13a0\u13b1"], "cannot write the class"),
        (["red", " red"], "choose a B that makes them one class"),
    ],
)
def test_a_class_that_cannot_be_embedded_is_named_with_the_remedy(
    tiny: LanguageModel, classes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        class_features(tiny, classes)
    assert "\n" not in str(error.value)
