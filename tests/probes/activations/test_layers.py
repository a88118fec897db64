import gc
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from probes.activations.layers import Layers
from probes.targets.closed import ClassTarget
from tests.probes.tables import evaluated

N, D, NAMES = 60, 8, tuple(f"blocks.{i}.hook_resid_post" for i in range(4))
GROUPS = [str(row) for row in range(N)]


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, len(NAMES), D)).astype(np.float32)


@pytest.fixture
def target() -> ClassTarget:
    return ClassTarget(tuple("abc"), np.random.default_rng(1).dirichlet(np.ones(3), size=N), None)


score = partial(evaluated, group=GROUPS, folds=3, permutations=3, bootstrap=10, seed=0)


def test_only_one_layer_is_alive_at_a_time(
    values: np.ndarray, target: ClassTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.activations.layers.BYTES", 1)
    path = tmp_path / "activations.safetensors"
    save_file({"values": values.astype(np.float16)}, path)
    alive: list[weakref.ref] = []
    tensors: list[weakref.ref] = []

    def read(index: int) -> np.ndarray:
        gc.collect()
        assert not any(ref() is not None for ref in (*alive, *tensors)), "an earlier layer is still held"
        with safe_open(path, framework="np") as stored:
            layer = stored.get_slice("values")[:, index : index + 1][:, 0].copy()
        alive.append(weakref.ref(layer))
        return layer

    block = Layers.block

    def watched(self: Layers, part: slice, n: int, device: str):
        made = block(self, part, n, device)
        tensors.append(weakref.ref(made.values))
        return made

    monkeypatch.setattr(Layers, "block", watched)
    streamed = score(Layers(NAMES, read, 4 * D), target).frame
    assert len(tensors) == len(NAMES)
    assert len(alive) == len(NAMES)
    monkeypatch.setattr(Layers, "block", block)
    narrowed = values.astype(np.float16)
    pd.testing.assert_frame_equal(streamed, score(narrowed, target, layers=NAMES).frame, atol=1e-5)


def test_layers_may_be_picked_and_put_in_order(values: np.ndarray, target: ClassTarget) -> None:
    whole = score(values, target, layers=NAMES).frame
    some = score(Layers.of(values, NAMES).only([NAMES[2], NAMES[0]]), target).frame
    assert list(some["layer"]) == [NAMES[2], NAMES[0]]
    np.testing.assert_allclose(some["explained"], whole["explained"].iloc[[2, 0]], atol=1e-5)


def test_a_layer_that_was_not_captured_is_refused_with_the_nearest(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"no activations of layer 'blocks.3.resid_post', did you mean 'blocks.3.hook"):
        Layers.of(values, NAMES).only(["blocks.3.resid_post"])


def test_layers_that_do_not_fit_are_refused(values: np.ndarray, target: ClassTarget) -> None:
    with pytest.raises(ValueError, match="3 layer names"):
        score(values, target, layers=NAMES[1:])
    with pytest.raises(ValueError, match="60 targets"):
        score(Layers.of(values[1:], NAMES), target)
    ragged = Layers(NAMES, lambda index: values[:, index, : D - index], 4 * D)
    with pytest.raises(ValueError, match="one width at a time"):
        score(ragged, target)
