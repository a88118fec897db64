"""Activations in the prompt: the right tokens, whatever is batched, padded or shared, and on a real tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.atlas.weights import bundled
from probes.activations.capture import ResidualCapture, capture
from semcal import LanguageModel, Question, UserError
from semcal.positions import ALL_QUESTION_TOKENS, LAST_PROMPT_TOKEN, LAST_QUESTION_TOKEN, QUESTION_MEAN, of_question
from semcal.questions.prompts import few_shot, question_span
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling

POSITIONS = (LAST_PROMPT_TOKEN, LAST_QUESTION_TOKEN, QUESTION_MEAN, ALL_QUESTION_TOKENS)
TEXTS = ("Brass Lynx line from Amberhaven, 1 stop on?", "Where was Ada Quill born?", "Ash Otter line from Northton?")
EXEMPLARS = [Question(f"e{i}", f"{text[:-1]} then?", ("Northton",)) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def atlas() -> LanguageModel:
    return LanguageModel.load(bundled("base"), device="cpu")


@pytest.fixture(scope="module")
def asked(atlas):
    """(prompt text, question text, prompt, places of the question's tokens) of few-shot prompts that share exemplars."""
    found = []
    for i, text in enumerate(TEXTS):
        question = Question(f"q{i}", text, ("Northton",))
        prompt = few_shot(question, EXEMPLARS, "concise", 2, 0, vary="run")
        span = question_span(prompt, question, "concise")
        assert prompt[slice(*span)] == text
        found.append((prompt, text, Prompt(question.id, atlas.encode(prompt)), atlas.tokens_at(prompt, *span)))
    return found


def hidden_states(model, prompt):
    """[layer, token, d_model] of Hugging Face, without the last layer, which is behind the final norm."""
    states = model.model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    return torch.cat(states[:-1]).numpy()


def test_the_tokens_of_a_question_spell_the_question(atlas, asked):
    for _, text, prompt, tokens in asked:
        assert atlas.decode(prompt.ids[tokens.start : tokens.stop]).strip() == text
        assert "Answer:" in atlas.decode(prompt.ids[tokens.stop :])


def test_all_positions_at_once_are_hugging_faces_hidden_states(atlas, asked):
    where = {
        prompt.key: {p: (len(prompt.ids) - 1,) if p == LAST_PROMPT_TOKEN else of_question(p, tokens) for p in POSITIONS}
        for _, _, prompt, tokens in asked
    }
    observer = ResidualCapture(where=where)
    prompts = [prompt for _, _, prompt, _ in asked]
    shared = prompts[0].ids[: min(tokens.start for *_, tokens in asked)]
    assert len(shared) > 20  # the exemplars are read once, and the questions after them
    settings = Sampling(m=2, max_new_tokens=2)
    sampler = Sampler(atlas.model, settings, atlas.stop_rule(()), device=atlas.device, prefix=shared)
    list(sampler.sample(prompts, observer))
    assert sampler.work.prefix_tokens == len(shared)
    found = {p: observer.take([prompt.key for prompt in prompts], p) for p in POSITIONS}
    rows = np.split(np.arange(found[ALL_QUESTION_TOKENS].rows.sum()), found[ALL_QUESTION_TOKENS].rows.cumsum()[:-1])
    for at, (_, _, prompt, tokens) in enumerate(asked):
        theirs = hidden_states(atlas, prompt)
        question = theirs[:, tokens.start : tokens.stop]
        for position, row, expected in (
            (LAST_PROMPT_TOKEN, at, theirs[:, -1]),
            (LAST_QUESTION_TOKEN, at, question[:, -1]),
            (QUESTION_MEAN, at, question.mean(1)),
            (ALL_QUESTION_TOKENS, rows[at], question.transpose(1, 0, 2)),
        ):
            ours = found[position].values[row][..., :-1, :]
            assert abs(ours - expected).max() <= 1e-4 * abs(expected).max(), position
        ids = np.array(prompt.ids)
        assert found[ALL_QUESTION_TOKENS].token_ids[rows[at]].tolist() == ids[tokens].tolist()
        for position in POSITIONS[:3]:
            assert found[position].token_ids[at] == ids[found[position].token_index[at]]


def test_a_place_in_the_shared_prefix_is_refused_and_never_misread(atlas, asked):
    prompts = [prompt for _, _, prompt, _ in asked]
    observer = ResidualCapture(where={p.key: {QUESTION_MEAN: range(2, 5)} for p in prompts})
    sampler = Sampler(atlas.model, Sampling(m=2), atlas.stop_rule(()), device=atlas.device)
    with pytest.raises(UserError, match=r"question_mean lies among the \d+ tokens that all prompts start with"):
        list(sampler.sample(prompts, observer))


def test_the_notebook_function_reads_questions_and_chosen_hooks(atlas, asked):
    texts, questions = [text for text, *_ in asked], [question for _, question, *_ in asked]
    heads = capture(
        atlas,
        texts,
        hooks=["blocks.*.attn.hook_z", "blocks.1.hook_mlp_out"],
        position=QUESTION_MEAN,
        questions=questions,
    )
    config = atlas.model.config
    width = config.hidden_size // config.num_attention_heads
    assert heads.heads.shape == (3, config.num_hidden_layers, config.num_attention_heads, width)
    assert (heads.layers, heads.values.shape) == (("blocks.1.hook_mlp_out",), (3, 1, config.hidden_size))
    usual = capture(atlas, texts)
    assert usual.token_ids.tolist() == [prompt.ids[-1] for _, _, prompt, _ in asked]
    with pytest.raises(ValueError, match="needs as many questions, got 0"):
        capture(atlas, texts, position=QUESTION_MEAN)
    with pytest.raises(UserError, match="'no such text' is not in its prompt"):
        capture(atlas, texts[:1], position=QUESTION_MEAN, questions=["no such text"])
    with pytest.raises(ValueError, match="lies in the answer"):
        capture(atlas, texts, position="chain_50")
    with pytest.raises(UserError, match=r"'blocks\.9\.hook_resid_post' matches nothing in LlamaForCausalLM"):
        capture(atlas, texts, hooks=["blocks.9.hook_resid_post"])


def test_capture_refuses_one_text_and_carries_question_ids(atlas):
    with pytest.raises(ValueError, match=r"prompts is one text, 'one string'; expected a list of prompts"):
        capture(atlas, "one string")
    found = capture(atlas, ["one", "two", "one"], ids=["a", "b", "c"])
    assert found.keys == ("a", "b", "c")
    np.testing.assert_array_equal(found.values[0], found.values[2])
    assert capture(atlas, ["one", "two"]).keys == ("one", "two")
    with pytest.raises(ValueError, match="prompt 'one' is duplicated; give each prompt its own id"):
        capture(atlas, ["one", "two", "one"])
    with pytest.raises(ValueError, match="1 ids for 2 prompts"):
        capture(atlas, ["one", "two"], ids=["a"])


def test_a_question_read_again_after_memory_ran_out_is_there_once(atlas, asked):
    prompts = [prompt for _, _, prompt, _ in asked]
    observer = ResidualCapture(where={p.key: {ALL_QUESTION_TOKENS: range(3)} for p in prompts})
    sampler = Sampler(atlas.model, Sampling(m=2), atlas.stop_rule(()), device=atlas.device, prefix=())
    for _ in range(2):
        list(sampler.sample(prompts, observer))
    assert observer.take(["q0", "q1", "q2"], ALL_QUESTION_TOKENS).rows.tolist() == [3, 3, 3]
    with pytest.raises(KeyError):
        observer.take(["q0"], ALL_QUESTION_TOKENS)
