from functools import partial

import numpy as np
import pytest
import torch

from probes.activations.capture import capture
from probes.activations.layers import Layers
from probes.evaluation.baselines import baseline_row, first_token_features, random_init_like
from probes.rungs.lens import first_token_facts
from probes.targets.closed import ClassTarget
from probes.targets.scalars import ScalarTarget
from semcal import LanguageModel
from tests.probes.tables import evaluated

PROMPTS = ["red blue green", "one two", "three red", "blue one two"]


def test_random_weights_are_seeded_and_of_the_same_architecture(tiny: LanguageModel) -> None:
    before = torch.get_rng_state()
    first, again, other = (random_init_like(tiny, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    shapes = {name: value.shape for name, value in tiny.model.state_dict().items()}
    assert {name: value.shape for name, value in first.model.state_dict().items()} == shapes
    assert not first.model.training
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    differing = [n for n, v in first.model.state_dict().items() if not torch.equal(v, other.model.state_dict()[n])]
    assert differing
    assert tiny.weights_hash != first.weights_hash != other.weights_hash


def test_random_activations_are_read_at_the_same_tokens_and_layers(tiny: LanguageModel) -> None:
    own, random = capture(tiny, PROMPTS), capture(random_init_like(tiny, 0), PROMPTS)
    assert random.layers == own.layers
    assert random.values.shape == own.values.shape
    np.testing.assert_array_equal(random.token_ids, own.token_ids)
    assert np.abs(random.values - own.values).max() > 1e-3


def test_the_first_token_is_a_layer_of_its_entropy_and_its_greatest_probability(tiny: LanguageModel) -> None:
    residual = capture(tiny, PROMPTS).values[:, -1]
    layers = first_token_features(tiny, residual)
    found = layers.layer(0, len(PROMPTS))
    np.testing.assert_allclose(found[:, 0], first_token_facts(tiny, residual)[:, 0])
    assert (found[:, 1] < 0).all()


def test_first_token_entropy_explains_an_entropy_that_it_is_and_hardly_the_class() -> None:
    rng = np.random.default_rng(0)
    entropy, n = rng.uniform(0, 2, size=120), 120
    layers = Layers.of(entropy[:, None, None], ["first-token entropy"])
    settings = {"group": [str(i) for i in range(n)], "rung": "baseline:first-token", "permutations": 0, "seed": 0}
    scalar = evaluated(layers, ScalarTarget(entropy, "entropy"), **settings).frame
    assert scalar["explained"].item() > 0.99
    target = ClassTarget(tuple("abc"), np.eye(3)[rng.integers(0, 3, n)], 50)
    classes = evaluated(layers, target, **settings).frame
    assert (classes["rung"] == "baseline:first-token").all()
    assert classes["explained"].item() < 0.05


def test_the_marginal_explains_nothing_and_leaves_all_of_its_nats() -> None:
    rng = np.random.default_rng(0)
    target = ClassTarget(tuple("abc"), rng.dirichlet(np.ones(3), size=60), None)
    score = partial(evaluated, rng.normal(size=(60, 2, 4)), layers=["a", "b"], group=[str(i) for i in range(60)])
    row = baseline_row(score(target, permutations=0, seed=0)).iloc[0]
    assert (row["rung"], row["layer"]) == ("baseline:marginal", "")
    assert row["explained"] == row["of_ceiling"] == 0
    assert row["probe_nats"] == pytest.approx(row["baseline_nats"])
    unknown = score(ClassTarget(tuple("abc"), np.eye(3)[rng.integers(0, 3, 60)], 1), permutations=0, seed=0)
    assert np.isnan(baseline_row(unknown)["of_ceiling"].item())
