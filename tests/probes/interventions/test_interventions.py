"""What is written during the prefill is what TransformerBridge would write there, and all that follows follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.activations.capture import capture
from probes.activations.hooks import choose_hooks
from probes.interventions.edits import WRITABLE, Ablate, Intervening, Patch, Steer, intervene
from probes.interventions.effects import total_variation
from probes.interventions.subspaces import covariance, probe_subspace, random_subspaces, removed_variance
from probes.rungs.linear import LinearProbe
from semcal import LanguageModel, UserError
from semcal.models.skeleton import bridge
from semcal.sampling.decoding.decoders import pad_left, prefill
from semcal.sampling.decoding.paths import EXPANDED, SHARED
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from semcal.semantics.class_table import ClassTable
from tests.conftest import CONFIGS, save_checkpoint

SHOTS = (0, 5, 9, 14, 7, 8)
PROMPTS = [Prompt(f"q{i}", (*SHOTS, *tail)) for i, tail in enumerate([(4,), (6, 7, 8, 11, 5), (9, 3), (4, 4, 10)])]
LAST = "blocks.2.hook_resid_post"
SETTINGS = Sampling(m=30, max_new_tokens=6)


def some_basis(rank: int, width: int = 32) -> np.ndarray:
    return random_subspaces(width, rank, 1, seed=3)[0]


def some_mean(width: int = 32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(width)


def drawn(model, made, *, path=None, where=None):
    rule = model.stop_rule(())
    sampler = Sampler(model.model, SETTINGS, rule, device=model.device, path=path, prefix=SHOTS[:4])
    found = {a.key: a for a in sampler.sample(PROMPTS, Intervening(made, where) if made else None)}
    return [found[p.key].samples for p in PROMPTS]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
@pytest.mark.parametrize("kind", WRITABLE)
def test_a_change_is_the_one_a_bridge_hook_makes(tmp_path, architecture, kind):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    name, basis, mean = f"blocks.1.{kind}", some_basis(5), some_mean()
    batch = pad_left(PROMPTS, 0, model.device)
    where = {p.key: (len(SHOTS) - 1, len(p.ids) - 1) for p in PROMPTS}
    ours, _ = prefill(model.model, batch, Intervening([Ablate(name, basis, mean)], where))
    plain, _ = prefill(model.model, batch)
    B, centre = torch.tensor(basis, dtype=torch.float32), torch.tensor(mean, dtype=torch.float32)

    def ablate(value, hook):  # noqa: ARG001
        for row, prompt in enumerate(PROMPTS):
            shift = value.shape[1] - len(prompt.ids)
            for place in where[prompt.key]:
                x = value[row, shift + place]
                value[row, shift + place] = x - B @ (B.T @ (x - centre))
        return value

    theirs = bridge(model).run_with_hooks(
        batch.ids, attention_mask=batch.mask, position_ids=batch.positions, fwd_hooks=[(name, ablate)]
    )[:, -1]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (ours - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_both_paths_draw_the_same_and_later_tokens_follow_from_the_changed_prompt(tmp_path, architecture):
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    made = [Steer("blocks.0.hook_resid_post", 4 * some_mean(), 1.0)]
    shared, expanded, alone = drawn(model, made, path=SHARED), drawn(model, made, path=EXPANDED), drawn(model, [])
    assert [[(s.ids, s.count) for s in its] for its in shared] == [[(s.ids, s.count) for s in its] for its in expanded]
    assert shared != alone
    (hook,) = choose_hooks(model.model, [made[0].hook])
    for prompt, samples in zip(PROMPTS, shared, strict=True):
        sample = samples[-1]
        at = len(prompt.ids) - 1

        def write(hidden, at=at):
            changed = hidden.clone()
            changed[:, at] += torch.tensor(4 * some_mean(), dtype=torch.float32)
            return changed

        handle = hook.attach(write)  # one pass over prompt and answer, in which the prompt's last token is changed
        logits = model.model(torch.tensor([[*prompt.ids, *sample.ids]])).logits[0, at:-1]
        handle.remove()
        logprob = logits.double().log_softmax(-1).gather(-1, torch.tensor(sample.ids)[:, None]).sum()
        assert sample.logprob == pytest.approx(float(logprob), abs=1e-4)


def test_nothing_is_changed_bit_for_bit_by_an_empty_basis_or_a_step_of_no_size(tiny):
    for made in (Ablate(LAST, np.zeros((32, 0)), some_mean()), Steer(LAST, some_mean(), 0.0), Patch(LAST, {})):
        assert drawn(tiny, [made]) == drawn(tiny, [])
        batch = pad_left(PROMPTS, 0, tiny.device)
        assert torch.equal(prefill(tiny.model, batch, Intervening([made]))[0], prefill(tiny.model, batch)[0])


def test_without_the_last_layer_every_question_begins_alike(tiny):
    ablated, _ = prefill(
        tiny.model, pad_left(PROMPTS, 0, tiny.device), Intervening([Ablate(LAST, np.eye(32), some_mean())])
    )
    torch.testing.assert_close(ablated, ablated[:1].expand_as(ablated), atol=1e-4, rtol=1e-4)


def test_a_patched_question_begins_like_the_one_it_was_patched_from(tiny):
    found = capture(tiny, PROMPTS, hooks=[LAST])
    batch = pad_left(PROMPTS, 0, tiny.device)
    plain, _ = prefill(tiny.model, batch)
    patched, _ = prefill(tiny.model, batch, Intervening([Patch(LAST, {"q0": found.values[2, 0]})]))
    torch.testing.assert_close(patched[0], plain[2], atol=1e-4, rtol=1e-4)
    assert torch.equal(patched[1:], plain[1:])


def test_how_far_activations_were_moved_is_kept(tiny):
    observer = Intervening([Steer(LAST, np.eye(32)[0], -3.0)], {p.key: range(4, len(p.ids)) for p in PROMPTS})
    prefill(tiny.model, pad_left(PROMPTS, 0, tiny.device), observer)
    assert {k: len(v) for (k, _), v in observer.changes.items()} == {p.key: len(p.ids) - 4 for p in PROMPTS}
    assert observer.changes["q1", LAST] == pytest.approx([3.0] * 7, abs=1e-4)


def test_a_prefix_that_is_read_once_is_not_written_to(tiny):
    made = [Steer(LAST, some_mean(), 1.0)]
    with pytest.raises(UserError, match="question 'q0': token 2 cannot be changed; the first 4 of its 7 are read once"):
        drawn(tiny, made, path=SHARED, where={p.key: (2,) for p in PROMPTS})
    # `intervene` shares no more than it may.
    (found,) = intervene(tiny, PROMPTS, SETTINGS, {"early": made}, where={p.key: (2,) for p in PROMPTS})
    assert found.change == pytest.approx(np.linalg.norm(some_mean()), rel=1e-4)


def test_where_nothing_can_be_written(tiny):
    for hook in ("blocks.1.hook_resid_mid", "blocks.1.attn.hook_z"):
        with pytest.raises(UserError, match="nothing can be written at"):
            Intervening([Steer(hook, some_mean(), 1.0)]).choose(tiny.model)
    with pytest.raises(UserError, match=r"'blocks\.9\.hook_resid_post' matches nothing"):
        Intervening([Steer("blocks.9.hook_resid_post", some_mean(), 1.0)]).choose(tiny.model)
    with pytest.raises(UserError, match=r"means 3"):
        Intervening([Steer("blocks.*.hook_resid_post", some_mean(), 1.0)]).choose(tiny.model)
    with pytest.raises(ValueError, match="not orthonormal"):
        Ablate(LAST, np.ones((32, 2)), some_mean())


def test_a_planted_direction_is_found_and_used(tmp_path):
    """Attention and MLPs add nothing, so the answer is what the last word's embedding says along three directions."""
    model = LanguageModel.load(save_checkpoint(tmp_path / "toy"), device="cpu")
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.standard_normal((32, 3)))[0]
    words, answers, n = np.arange(10, 50), np.array([5, 6, 7]), 40
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        strength = rng.dirichlet([0.5] * 3, n) * 4
        rest = rng.standard_normal((n, 32)) * 0.7
        rest -= rest @ planted @ planted.T
        model.model.get_input_embeddings().weight[words] = torch.tensor(strength @ planted.T + rest).float()
        head = torch.full_like(model.model.lm_head.weight, 0.0)
        head[answers] = torch.tensor(2.5 * planted.T).float()
        model.model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    prompts = [Prompt(f"w{w}", (0, int(w))) for w in words]
    hook, settings = "blocks.1.hook_resid_post", Sampling(m=50, max_new_tokens=1)

    def classes(answers_of) -> ClassTable:
        keys = [p.key for p in prompts]
        labels, counts = (
            [[f(a) for a in answers_of[k]] for k in keys] for f in (lambda a: str(a.ids), lambda a: a.count)
        )
        return ClassTable.of_answers(keys, keys, labels, counts, [frozenset()] * len(keys))

    (alone,) = intervene(model, prompts, settings, {"alone": ()})
    base = classes(alone.answers)
    X = capture(model, prompts, hooks=[hook]).values[:, 0].astype(np.float64)
    logits = prefill(model.model, pad_left(prompts, 0, model.device))[0]
    Y = logits[:, answers].double().softmax(-1).numpy()
    cov = covariance(X)
    basis = probe_subspace(LinearProbe(0.1).fit(X, Y).weight_, 2, cov)
    controls = random_subspaces(32, 2, 10, seed=0)
    made = {"probe": basis} | {f"random {i}": c for i, c in enumerate(controls)}
    found = intervene(model, prompts, settings, {k: [Ablate(hook, b, X.mean(0))] for k, b in made.items()})
    moved = {f.condition: total_variation(base, classes(f.answers)).mean() for f in found}
    assert max(v for k, v in moved.items() if k != "probe") < moved["probe"] / 2
    assert removed_variance(basis, cov) > 0
