"""Tokens drawn in several parts: the same as at once, and brought to the host together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semcal.sampling import drawing
from semcal.sampling.drawing import draw
from semcal.sampling.records import Sampling

# What makes the host wait for a GPU.
WAITS = ("cpu", "nonzero", "argwhere", "masked_select", "unique", "item", "tolist", "__bool__", "__int__", "__index__")
TABLE = torch.randn(10, 300, generator=torch.Generator().manual_seed(0)) * 3
ROWS = np.array([0, 0, 1, 3, 3, 3, 4, 7, 8, 9, 9])  # rows 2, 5 and 6 have no draw
UNIFORM = np.random.default_rng(0).random(len(ROWS))
HOW = {"plain": {}, "top-k": {"top_k": 20}, "top-p": {"top_p": 0.9}, "cold": {"temperature": 0.3}}


class Watched(torch.Tensor):
    """Notes what of it makes the host wait; what is computed from it is watched, too."""

    waits: list[str]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in WAITS:
            cls.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


def sampling(**given) -> Sampling:
    return Sampling(m=2, max_new_tokens=1, stop=(), seed=0, **given)


@pytest.mark.parametrize("how", HOW)
def test_in_parts_the_draws_are_those_of_one(how, monkeypatch):
    at_once = draw(TABLE, sampling(**HOW[how]), ROWS, UNIFORM)
    monkeypatch.setattr(drawing, "NUMBERS_AT_ONCE", 3 * TABLE.shape[1])  # three rows: the last part has one
    in_parts = draw(TABLE, sampling(**HOW[how]), ROWS, UNIFORM)
    for one, other in zip(at_once, in_parts, strict=True):
        np.testing.assert_array_equal(one, other)
    tokens, logprobs, bad = in_parts
    laws = drawing.token_probabilities(TABLE, sampling(**HOW[how])).double()
    assert tokens.dtype == np.int64
    assert not len(bad)
    np.testing.assert_array_equal(logprobs, laws[torch.from_numpy(ROWS), torch.from_numpy(tokens)].log().numpy())


def test_broken_rows_of_every_part_are_named(monkeypatch):
    monkeypatch.setattr(drawing, "NUMBERS_AT_ONCE", 3 * TABLE.shape[1])
    broken = TABLE.clone()
    broken[[1, 5, 9], 7] = torch.nan  # of row 5 nothing is drawn
    assert draw(broken, sampling(), ROWS, UNIFORM)[2].tolist() == [1, 5, 9]


def test_however_many_parts_the_host_waits_once(monkeypatch):
    monkeypatch.setattr(drawing, "NUMBERS_AT_ONCE", TABLE.shape[1])
    Watched.waits = []
    tokens, *_ = draw(TABLE.as_subclass(Watched), sampling(top_k=20, top_p=0.9), ROWS, UNIFORM)
    assert tokens.tolist() == draw(TABLE, sampling(top_k=20, top_p=0.9), ROWS, UNIFORM)[0].tolist()
    assert Watched.waits == ["cpu"]
