"""Activations along an answer: of the tokens as sampled, at the tokens the positions name."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import probes.activations.chains
from experiments.atlas.weights import bundled
from probes.activations.chains import Chain, choose, places, read_chains
from semcal import LanguageModel, UserError, sample
from semcal.sampling.records import Prompt
from semcal.semantics.extract import extract, locate
from tests.conftest import CONFIGS, save_checkpoint

POSITIONS = ("after_1_tokens", "after_4_tokens", "chain_0", "chain_25", "chain_50", "chain_75", "chain_100")
ALL = (*POSITIONS, "before_answer")
ROUTE = "Question: Brass Lynx line from Amberhaven, 3 stops on?\nAnswer:"
FACT = "Question: Where was Ada Quill born?\nAnswer:"


@pytest.fixture(scope="module")
def atlas() -> LanguageModel:
    return LanguageModel.load(bundled("base"), device="cpu")


def check_against_hugging_face(model, chains, found):
    """The values at every position are those of one plain forward pass over prompt and answer, all layers but the last,
    which Hugging Face shows behind the final norm."""
    for position, ours in found.items():
        row = 0
        for chain, rows in zip(chains, ours.rows, strict=True):
            if not rows:
                continue
            ids = (*chain.prompt.ids, *chain.answer)
            at = ours.token_index[row]
            assert ours.token_ids[row] == ids[at]
            theirs = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer in range(len(theirs) - 1):
                expected = theirs[layer][0, at].numpy()
                assert abs(ours.values[row, layer] - expected).max() <= 1e-4 * abs(expected).max(), position
            row += 1
        assert row == len(ours.values)


def test_sampled_answers_of_a_real_model_are_read_as_hugging_face_reads_them(atlas):
    chains = []
    for prompt in (ROUTE, FACT):
        ids = Prompt(prompt, atlas.encode(prompt))
        answers = sample(atlas, [ids], m=4, max_new_tokens=24, stop=["\n"])[0]
        chains.append(Chain(ids, answers[0].ids, answers[0].text))
    check_against_hugging_face(atlas, chains, read_chains(atlas, chains, ALL, style="sentence"))


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_architecture_reads_answers_of_different_length(architecture, tmp_path):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    answers = [(5, 6, 7, 8, 9, 10, 11), (12, 13, 14), (1,), ()]  # 1 ends a text
    chains = [Chain(Prompt(f"q{i}", (0, 4, 9)[: 3 - i % 2]), a, model.decode(a)) for i, a in enumerate(answers)]
    found = read_chains(model, chains, POSITIONS, style="concise")
    assert found["after_4_tokens"].rows.tolist() == [1, 0, 0, 0]
    assert found["after_1_tokens"].rows.tolist() == found["chain_0"].rows.tolist() == [1, 1, 0, 0]
    assert found["after_4_tokens"].token_ids.tolist() == [8]
    assert found["chain_0"].token_ids.tolist() == [9, 4]
    assert found["chain_100"].token_ids.tolist() == [11, 14]
    assert found["chain_50"].token_ids.tolist() == [8, 13]  # 3.5 and 1.5 tokens, to the even
    check_against_hugging_face(model, chains, found)


def test_where_no_answer_has_the_place_there_are_no_rows_and_all_layers(atlas):
    chains = [Chain(Prompt("q", atlas.encode(ROUTE)), (), "")]
    found = read_chains(atlas, chains, ["chain_50"], style="concise")["chain_50"]
    assert (len(found.layers), found.values.shape[0], found.rows.tolist()) == (
        atlas.model.config.num_hidden_layers + 1,
        0,
        [0],
    )


@pytest.mark.parametrize("space", ["", "\n"])
def test_what_ended_an_answer_is_no_part_of_it(atlas, space):
    ids = atlas.encode_rendered(f" The answer is Northton.{space}\nQuestion")
    chain = Chain(Prompt("q", atlas.encode(ROUTE)), ids, f" The answer is Northton.{space}")
    last = places(atlas.decode, chain, "sentence", ["chain_100"])["chain_100"][0] - len(chain.prompt.ids)
    assert atlas.decode(ids[: last + 1]) == " The answer is Northton."
    assert last + 1 < len(ids)


@pytest.mark.parametrize(
    ("text", "style", "before"),
    [
        (" Let us think. The answer is Northton.", "cot", " Let us think. The answer is"),
        (" The answer is Northton.", "sentence", " The answer is"),
        (" Ada Quill was born in Northton.", "sentence", " Ada Quill was"),
        (" Northton", "concise", ""),
    ],
)
def test_before_the_answer_is_the_token_right_before_its_phrase(atlas, text, style, before):
    prompt = Prompt("q", atlas.encode(ROUTE))
    ids = atlas.encode_rendered(text)
    (at,) = places(atlas.decode, Chain(prompt, ids, text), style, ["before_answer"])["before_answer"]
    assert atlas.decode(ids[: at + 1 - len(prompt.ids)]) == before


@pytest.mark.parametrize(
    ("text", "style", "before"),
    [
        (" You get off at Northton Town.", "sentence", " You get off at"),
        (" You are in the Lucky Gate.", "sentence", " You are in"),
        (" Northton, Easton. The answer is Easton.", "cot", " Northton, Easton. The answer is"),
        (" Northton, then Easton.", "concise", " Northton, then"),
        (" He is the joiner.", "sentence", " He is"),
    ],
)
def test_where_all_answers_are_known_the_token_before_the_last_one_named_is_read(atlas, text, style, before):
    forms = ["Northton", "northton town", "Town", "the Lucky Gate", "Easton"]
    prompt, ids = Prompt("q", atlas.encode(ROUTE)), atlas.encode_rendered(text)
    found = places(atlas.decode, Chain(prompt, ids, text), style, ["before_answer"], forms=forms)
    (at,) = found["before_answer"]
    assert atlas.decode(ids[: at + 1 - len(prompt.ids)]) == before


def test_an_answer_without_a_phrase_has_no_place_before_it(atlas):
    chain = Chain(Prompt("q", atlas.encode(ROUTE)), atlas.encode_rendered(" Let us think."), " Let us think.")
    found = places(atlas.decode, chain, "cot", ["before_answer", "chain_50"])
    assert (len(found["before_answer"]), len(found["chain_50"])) == (0, 1)


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("  Paris\nmore", "concise"),
        (" The answer is a. So a it is", "sentence"),
        ("It is a cat, and a dog was  here.", "sentence"),
        (" a a #### a", "cot"),
        ("The answer is $\\boxed{ 12 }$.", "cot"),
        ("so \\boxed{a} then. The answer is: St. Louis.\n", "cot"),
        ("A: x\nfinal answer: \\boxed{y}", "cot"),
        ("nothing", "cot"),
        (" to be\ncontinued", "continuation"),
    ],
)
def test_the_phrase_stands_where_it_is_said_to_stand(text, style):
    found = locate(text, style)
    phrase = extract(text, style)
    assert (found is None) == (phrase is None)
    if found is not None:
        start, said = found
        assert text[start : start + len(said)] == said == phrase


def test_an_answer_is_chosen_in_proportion_to_its_count_and_by_seed_and_question():
    weights = [6, 3, 1]
    drawn = Counter(choose(weights, 0, f"q{i}") for i in range(3000))
    assert np.allclose([drawn[i] / 3000 for i in range(3)], [0.6, 0.3, 0.1], atol=0.04)
    assert [choose(weights, 1, "q7") for _ in range(3)] == [choose(weights, 1, "q7")] * 3
    assert choose([], 0, "q") == -1


def test_out_of_memory_fewer_answers_are_read_at_once_and_a_single_one_is_refused(atlas, monkeypatch):
    text = " The answer is Northton."
    chains = [Chain(Prompt(f"q{i}", atlas.encode(ROUTE)), atlas.encode_rendered(text), text) for i in range(5)]
    whole = read_chains(atlas, chains, ["chain_100"], style="sentence")["chain_100"]
    real, limit, sizes = probes.activations.chains.observe_all, 2, []

    def small(model, device, prompts, observer, *, padded):
        if len(prompts) > limit:
            raise torch.OutOfMemoryError
        sizes.append(len(prompts))
        real(model, device, prompts, observer, padded=padded)

    monkeypatch.setattr(probes.activations.chains, "observe_all", small)
    again = read_chains(atlas, chains, ["chain_100"], style="sentence")["chain_100"]
    assert sizes == [2, 2, 1]
    np.testing.assert_allclose(again.values, whole.values, rtol=1e-3, atol=1e-4)
    limit = 0
    with pytest.raises(UserError, match="out of GPU memory with a single answer"):
        read_chains(atlas, chains, ["chain_100"], style="sentence")
