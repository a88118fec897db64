"""The generative rung against planted distributions, against plain passes of the model, and under stops and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from experiments.bench.generative.generative_cases import CLOSE
from experiments.bench.generative.planted_generators import (
    MIXED,
    TOWNS,
    Planted,
    by_wording,
    cross_entropies,
    output_limit,
)
from probes.rungs.emitting.adapter_training import Asked
from probes.rungs.emitting.emitter import Emitter
from probes.rungs.emitting.generated_text import (
    ClassTexts,
    answer_lead,
    class_texts,
    prompts_without_exemplars,
    usual_texts,
)
from probes.rungs.emitting.generative import Generated, Progress, Training, generate_classes
from probes.solver.token_trees import TokenTree
from probes.targets.open import OpenTarget
from semcal import LanguageModel
from semcal.errors import NonFiniteError, UserError
from semcal.questions.prompts import Chat, FewShot
from semcal.questions.question import Question
from tests.conftest import CONFIGS, MORE_CONFIGS, save_checkpoint

pytestmark = pytest.mark.long

CLASSES = ("(unparsed)", "blue", "red", "red blue", "red one", "two")
BASE = FewShot("concise", shots=2)
FAST = Training(rates=(2e-2,), epochs=2, steps=1, draws=4, folds=2, curve=())


def world(n: int, *, sharpness: float = 2.0, seed: int = 0) -> tuple[list[tuple[int, ...]], OpenTarget, list[str]]:
    """Prompts whose last token decides over six classes, some the beginning of others; exact masses."""
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(3, 9, rng.integers(3, 7)).tolist()) for _ in range(n)]
    kinds = softmax(sharpness * np.random.default_rng(1).normal(size=(6, len(CLASSES))), axis=1)
    mass = kinds[[prompt[-1] - 3 for prompt in prompts]]
    starts, column = np.arange(n + 1) * len(CLASSES), np.argsort(-mass, axis=1, kind="stable")
    ordered = np.take_along_axis(mass, column, axis=1)
    return prompts, OpenTarget(CLASSES, starts, column.ravel(), ordered.ravel(), None), [str(i // 2) for i in range(n)]


END = 1
# The classes in a vocabulary of words, which has no word for "(unparsed)".
TEXTS = ClassTexts(((20, 21), (4,), (3,), (3, 4), (3, 6), (7,)), END)


def generated(model: LanguageModel, scratch: Path, how: Training = FAST, n: int = 40) -> Generated:
    prompts, target, group = world(n)
    return generate_classes(model, prompts, TEXTS, target, group, how, scratch=scratch)


# ---- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE_CONFIGS])
def test_scores_are_those_of_plain_passes(architecture: str, tmp_path: Path) -> None:
    """Also where the model's window is shorter than prompt and class, so that a tree would be read wrongly."""
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    emitter = Emitter(model, 2, END, seed=0)
    prompt, sequences = (3, 4, 5, 6, 7), [(8, 9, 10), (8, 9), (8,), (11, 12, 9, 10, 5), (8, 11)]
    emitter.check(prompt, sequences)
    found = emitter.scores(prompt, sequences)
    for sequence, score in zip(sequences, found, strict=True):
        ids = torch.tensor([[*prompt, *sequence]])
        log_p = torch.log_softmax(model.model(ids).logits[0].double(), -1)
        asked = [*sequence, emitter.end]
        expected = sum(log_p[len(prompt) - 1 + at, token].item() for at, token in enumerate(asked))
        assert score == pytest.approx(expected, abs=1e-3)
    assert emitter.trees == ("window" not in architecture and architecture not in ("gemma2", "gemma3", "phi3-window"))


def test_probabilities_of_all_short_strings_sum_to_less_than_one(tiny: LanguageModel) -> None:
    emitter = Emitter(tiny, 2, END, seed=0)
    strings = [(), *[(a,) for a in range(64) if a != emitter.end]]
    strings += [(a, b) for a in range(64) for b in range(64) if emitter.end not in (a, b)]
    total = np.exp(emitter.scores((3, 4), strings)).sum()
    assert 0.001 < total <= 1 + 1e-6


def test_gradients_over_a_blockwise_vocabulary_are_those_of_a_whole_one(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [TokenTree.of((3, 4, 5), [(6, 7), (6,), (8,)], 1), TokenTree.of((3, 5), [(9,), (6, 7, 8)], 1)]
    found = []
    for large in (2**14, 8):  # below `large` tokens the vocabulary is taken whole
        monkeypatch.setattr("semcal.sampling.decoding.output_layer.LARGE", large)
        monkeypatch.setattr("semcal.sampling.decoding.output_layer.BLOCK", 10)
        emitter = Emitter(tiny, 2, END, seed=0)
        for parameter in emitter.adapters.values():
            parameter.data += 0.05
        emitter.check((3, 4), [(5,)])
        assert (emitter.output.head is not None) == (large == 8)
        log_p = emitter.log_p(trees)
        (log_p * torch.arange(1.0, 1 + len(log_p))).sum().backward()
        found.append((log_p.detach(), [parameter.grad for parameter in emitter.adapters.values()]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_draws_weigh_like_the_distribution_on_average() -> None:
    shares = softmax(np.random.default_rng(0).normal(size=12))
    asked, seen = Asked((3,), [(i,) for i in range(12)], shares), np.zeros(12)
    for seed in range(2000):
        sequences, weights = asked.drawn(4, np.random.default_rng(seed))
        assert weights.sum() == pytest.approx(1)
        for (i,), weight in zip(sequences, weights, strict=True):
            seen[i] += weight / 2000
    assert np.abs(seen - shares).max() < 0.015


# ---- what is learnt --------------------------------------------------------------------------------------------------


PLANTED = Training(draws=6, steps=16, folds=2, curve=())  # rates and epochs as a study has them


@pytest.fixture(scope="module")
def organism() -> LanguageModel:
    return LanguageModel.load("atlas:base", device="cpu")


def learnt(model: LanguageModel, planted: Planted, scratch: Path, how: Training = PLANTED) -> tuple[Generated, float]:
    """What was generated, and its mean KL gap from the exact distributions, in nats."""
    found = generate_classes(
        model, planted.prompts, planted.texts, planted.target, planted.group, how, scratch=scratch / "scratch"
    )
    return found, float((cross_entropies(planted.target, found.log_q) - planted.entropies).mean())


def test_a_planted_generator_is_recovered_and_a_fraction_of_the_questions_teaches_less(
    organism: LanguageModel, tmp_path: Path
) -> None:
    found, gap = learnt(organism, by_wording(organism, TOWNS, 72), tmp_path, replace(PLANTED, curve=(0.1,)))
    assert 0 <= gap < CLOSE
    few, all_ = found.curve
    assert few.learnt.questions < all_.learnt.questions
    assert few.cross_entropy.mean() > all_.cross_entropy.mean()
    assert not (tmp_path / "scratch").exists()


def test_a_constant_distribution_leaves_no_gap(organism: LanguageModel, tmp_path: Path) -> None:
    _, gap = learnt(organism, by_wording(organism, TOWNS, 24, wordings=1), tmp_path, replace(PLANTED, steps=12))
    assert 0 <= gap < CLOSE


def test_the_output_layer_lets_no_hidden_state_mix_what_no_answer_of_the_organism_mixes(
    organism: LanguageModel,
) -> None:
    """What a planted distribution leaves of its gap, then, says nothing of adapters."""
    mixed, towns = (by_wording(organism, labels, 4, wordings=1) for labels in (MIXED, TOWNS))
    limit = output_limit(organism, mixed, 1)
    before = np.concatenate(Emitter(organism, 1, mixed.texts.end, seed=0).score_all(mixed.asked))
    assert 0 < output_limit(organism, towns, 1) < 0.01 < limit
    assert limit < (cross_entropies(mixed.target, before) - mixed.entropies).min()


def test_a_useless_rate_keeps_the_model_as_it_is(tiny: LanguageModel, tmp_path: Path) -> None:
    """Where validation never gets better, epoch 0 is kept."""
    found = generated(tiny, tmp_path, replace(FAST, rates=(1e-12,)))
    assert all(learnt.epoch == 0 for learnt in found.learnt)
    assert [len(learnt.validation) for learnt in found.learnt] == [1 + FAST.epochs + FAST.cooling] * 2
    prompts, target, _ = world(40)
    emitter = Emitter(tiny, 8, END, seed=5)
    own = emitter.scores(prompts[3], [TEXTS.ids[c] for c in target.column[18:24]])
    np.testing.assert_allclose(found.log_q[18:24], own, atol=1e-4)


def test_the_model_and_the_global_generators_are_left_as_they_were(tiny: LanguageModel, tmp_path: Path) -> None:
    ids = torch.tensor([[3, 4, 5]])
    before, drawn, numpy = tiny.model(ids).logits, torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    generated(tiny, tmp_path)
    assert torch.equal(tiny.model(ids).logits, before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002 - it is what is asserted
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


# ---- again, and after a stop -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny: LanguageModel, tmp_path: Path) -> None:
    one, two, other = (generated(tiny, tmp_path, replace(FAST, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.log_q, two.log_q)
    assert one.learnt == two.learnt
    assert not np.array_equal(one.log_q, other.log_q)


IN_PARTS = replace(FAST, rates=(1e-2, 2e-2), curve=(0.5,))


@pytest.fixture(scope="module")
def whole(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Generated:
    """What is generated without a stop."""
    return generated(tiny, tmp_path_factory.mktemp("whole"), IN_PARTS)


@pytest.mark.parametrize("stops", [(2, 1), (5, 7), (12, 8, 1)])
def test_a_stop_changes_nothing(
    tiny: LanguageModel, whole: Generated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: Sequence[int]
) -> None:
    """Stops within an epoch, between rates, folds and points of the curve; state is saved after every other step."""
    how, (prompts, target, group) = IN_PARTS, world(40)
    monkeypatch.setattr("probes.rungs.emitting.adapter_training._SAVED_EVERY", 0.0)

    def stop_after(steps: int) -> None:
        left = steps

        def told(_: Progress) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate_classes(tiny, prompts, TEXTS, target, group, how, scratch=tmp_path / "parts", told=told)

    for steps in stops:
        stop_after(steps)
    heard: list[Progress] = []
    found = generate_classes(tiny, prompts, TEXTS, target, group, how, scratch=tmp_path / "parts", told=heard.append)
    assert np.array_equal(found.log_q, whole.log_q)
    assert found.learnt == whole.learnt
    assert [p.learnt for p in found.curve] == [p.learnt for p in whole.curve]
    assert not (tmp_path / "parts").exists()


def test_progress_tells_loss_fraction_and_time_left(tiny: LanguageModel, tmp_path: Path) -> None:
    prompts, target, group = world(40)
    heard: list[Progress] = []
    generate_classes(tiny, prompts, TEXTS, target, group, FAST, scratch=tmp_path, told=heard.append)
    fractions = [progress.fraction for progress in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    assert all(p.loss is None or np.isfinite(p.loss) for p in heard)
    assert heard[-1].seconds_left is not None
    assert {p.what for p in heard} >= {"fold 1 of 2", "fold 2 of 2: scoring"}


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_classes_are_encoded_after_a_space_and_control_tokens_in_them_are_text() -> None:
    model = LanguageModel.load("atlas:base", device="cpu")
    found = class_texts(model, ["Amberford", "(unparsed)", "</s>"], BASE)
    assert [model.decode(ids) for ids in found.ids] == [" Amberford", " (unparsed)", " </s>"]
    assert not any(model.eos_ids & set(ids) for ids in found.ids)
    prompt = model.encode("Question: Where?\nAnswer:")
    assert model.encode("Question: Where?\nAnswer: Amberford") == (*prompt, *found.ids[0])


def test_a_class_is_written_as_most_answers_write_it() -> None:
    answers = {"Gmail": 7.0, "GMAIL": 2.0, "The Yahoo!": 1.0, "yahoo": 1.0, "Red.": 3.0, "?": 1.0}
    found = usual_texts(["gmail", "yahoo", "red", "Red", "(unparsed)"], answers)
    assert found == {"gmail": "Gmail", "yahoo": "The Yahoo!"}  # "red" and "Red" read alike, so they keep their labels


def test_a_usual_text_that_cannot_be_written_or_is_taken_yields_to_the_label(tiny: LanguageModel) -> None:
    usual = {"red": "two", "blue": "Q", "one": "red red", "green": "red red"}
    found = class_texts(tiny, ["red", "blue", "one", "green"], BASE, usual)
    assert found.ids == class_texts(tiny, ["two", "blue", "red red", "green"], BASE).ids


def test_a_class_ends_as_the_model_ends_an_answer_unless_a_class_holds_that() -> None:
    """The organism ends answers by a line break, and never saw the token of an empty line."""
    model = LanguageModel.load("atlas:base", device="cpu")
    towns = ["Amberford", "baker", "weaver"]
    assert model.decode([class_texts(model, towns, BASE).end]) == "\n"
    several = class_texts(model, [*towns, "two\nlines"], BASE)
    assert not any(several.end in ids for ids in several.ids)
    tuned = LanguageModel.load("atlas:sft", device="cpu")
    assert class_texts(tuned, towns, Chat("concise")).end in tuned.eos_ids


def test_the_lead_is_what_the_template_writes() -> None:
    assert answer_lead(LanguageModel.load("atlas:base", device="cpu"), BASE) == " "
    tuned, asked = LanguageModel.load("atlas:sft", device="cpu"), {"role": "user", "content": "Vwq"}
    answered = tuned.render_chat([asked, {"role": "assistant", "content": "Xyz"}], answered=True)
    assert f"{tuned.render_chat([asked])}{answer_lead(tuned, Chat('concise'))}Xyz" in answered


def test_exemplars_are_dropped_from_few_shot_prompts_alone() -> None:
    model, question = LanguageModel.load("atlas:base", device="cpu"), Question("q", "Where?", ("Amberford",))
    dropped = prompts_without_exemplars(model, BASE, [question], [(0, 5, 6)])
    assert dropped == [model.encode("Question: Where?\nAnswer:")]
    assert prompts_without_exemplars(model, Chat("concise"), [question], [(0, 5, 6)]) == [(0, 5, 6)]
    assert prompts_without_exemplars(model, FewShot("concise"), [question], [(0, 5, 6)]) == [(0, 5, 6)]


# ---- bad input -------------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[UserError]) -> bool:
    return "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize("label", ["Q", "", " ", "red Q"])
def test_a_class_that_cannot_be_encoded_is_named(tiny: LanguageModel, label: str) -> None:
    with pytest.raises(UserError, match=rf"cannot encode the class '{label}'") as error:
        class_texts(tiny, ["red", label], BASE)
    assert one_line(error)


def test_classes_that_are_encoded_alike_are_named(tiny: LanguageModel) -> None:
    with pytest.raises(UserError, match="encodes the classes 'red blue' and 'red  blue' alike") as error:
        class_texts(tiny, ["red blue", "two", "red  blue"], BASE)
    assert one_line(error)


def test_one_class_overall_is_certain(tiny: LanguageModel, tmp_path: Path) -> None:
    target = OpenTarget(CLASSES, np.arange(9), np.full(8, 3), np.ones(8), None)
    group = [str(i) for i in range(8)]
    found = generate_classes(tiny, world(8)[0], TEXTS, target, group, FAST, scratch=tmp_path)
    assert (found.log_q == 0).all()
    assert (found.learnt, found.curve) == ((), ())
    found = generate_classes(tiny, world(8)[0], TEXTS, target, group, replace(FAST, all_classes=True), scratch=tmp_path)
    np.testing.assert_array_equal(np.exp(found.over_classes), np.tile(np.arange(len(CLASSES)) == 3, (8, 1)))


def test_where_all_classes_are_scored_their_own_are_those_of_a_call_without(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    """Where questions gave some of the classes, which are then a part of those that are scored."""
    prompts, target, group = world(40, sharpness=3.0)
    few = target.mass > 0.02
    kept = np.bincount(target.question[few], minlength=40)
    mass = target.mass[few] / np.bincount(target.question[few], target.mass[few])[target.question[few]]
    own = replace(target, starts=np.concatenate([[0], np.cumsum(kept)]), column=target.column[few], mass=mass)
    assert kept.min() < len(CLASSES)
    alone = generate_classes(tiny, prompts, TEXTS, own, group, FAST, scratch=tmp_path)
    found = generate_classes(tiny, prompts, TEXTS, own, group, replace(FAST, all_classes=True), scratch=tmp_path)
    assert alone.over_classes is None
    assert found.over_classes is not None
    assert found.over_classes.shape == (40, len(CLASSES))
    np.testing.assert_allclose(found.log_q, alone.log_q, rtol=1e-4)
    np.testing.assert_array_equal(found.over_classes[own.question, own.column], found.log_q)
    assert (np.exp(found.over_classes).sum(1) <= 1 + 1e-4).all()


@pytest.mark.parametrize(("groups", "folds"), [(1, 2), (2, 2), (4, 5)])
def test_fewer_groups_than_folds_need_are_refused(tiny: LanguageModel, tmp_path: Path, groups: int, folds: int) -> None:
    prompts, target, _ = world(8)
    group = [str(i % groups) for i in range(8)]
    with pytest.raises(UserError, match=f"{groups} groups? of questions cannot be split into {folds} folds") as error:
        generate_classes(tiny, prompts, TEXTS, target, group, replace(FAST, folds=folds), scratch=tmp_path)
    assert one_line(error)


def test_lengths_that_disagree_are_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    prompts, target, group = world(8)
    with pytest.raises(ValueError, match="7 prompts, 8 groups and 6 texts for 8 questions and 6 classes"):
        generate_classes(tiny, prompts[1:], TEXTS, target, group, FAST, scratch=tmp_path)


def test_a_loss_that_is_not_finite_stops_with_fold_and_step(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Emitter.log_p, 0

    def broken(self: Emitter, trees: Sequence[TokenTree]) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return whole(self, trees) * (float("nan") if calls == 2 else 1.0)

    monkeypatch.setattr(Emitter, "log_p", broken)
    with pytest.raises(NonFiniteError, match=r"fold 1 of 2, step 2: the loss is nan.*; lower the rate") as error:
        generated(tiny, tmp_path)
    assert one_line(error)


def test_a_tokenizer_without_an_end_is_refused(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(tiny), "eos_ids", frozenset())
    with pytest.raises(UserError, match="has no end-of-sequence token") as error:
        class_texts(tiny, ["red"], BASE)
    assert one_line(error)
