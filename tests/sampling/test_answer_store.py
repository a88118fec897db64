"""Keys and values of answers follow their rows, whatever the lengths, and short answers take little room."""

import numpy as np
import pytest
import torch

from semcal.sampling.decoding.answer_store import ROOM, AnswerStore

HEADS, D, LAYERS = 2, 3, 2


class Mirror:
    """The same as lists: for each row the numbers that were stored for it."""

    def __init__(self, seed: int) -> None:
        self.store, self.rows, self.rng = AnswerStore(), list[list[int]](), np.random.default_rng(seed)
        self.written = 0

    def extend(self, rows: list[int]) -> None:
        lengths = torch.tensor([len(self.rows[r]) for r in rows])
        for place in self.store.make_room(torch.tensor(rows), lengths):
            numbers = torch.arange(self.written, self.written + len(place.members)).float()
            new = numbers[:, None, None].expand(-1, HEADS, D)
            for layer in range(LAYERS):
                keys, values = self.store.put(layer, place, new + layer, -new - layer)
                assert keys.shape == values.shape == (place.filled, HEADS, place.longest, D)
                for member, slot, number in zip(place.members.tolist(), place.slots.tolist(), numbers, strict=True):
                    row = self.rows[rows[member]]
                    expected = torch.tensor([*row, float(number)]) + layer
                    assert torch.equal(keys[slot, 1, : len(row) + 1, 2], expected)
                    assert torch.equal(values[slot, 0, : len(row) + 1, 0], -expected)
            for member, number in zip(place.members.tolist(), numbers.tolist(), strict=True):
                self.rows[rows[member]].append(int(number))
            self.written += len(place.members)

    def move(self, rows: int, target: list[int], source: list[int]) -> None:
        old = [list(row) for row in self.rows]
        self.rows = [list(row) for row in old[:rows]] + [[] for _ in range(rows - len(old))]
        for to, of in zip(target, source, strict=True):
            self.rows[to] = list(old[of])
        self.store.move(rows, torch.tensor(target, dtype=torch.long), torch.tensor(source, dtype=torch.long))


@pytest.mark.parametrize("seed", range(6))
def test_rows_keep_what_was_stored_through_any_moves(seed: int) -> None:
    mirror = Mirror(seed)
    rng = mirror.rng
    mirror.move(5, [], [])
    longest = 0
    for _ in range(60):
        n = len(mirror.rows)
        mirror.extend(sorted(rng.choice(n, rng.integers(1, n + 1), replace=False).tolist()))
        longest = max(longest, *map(len, mirror.rows))
        rows = int(rng.integers(max(2, n - 2), n + 3))
        target = [r for r in range(rows) if rng.random() < (0.2 if r < n else 0.7)]  # others stay, or are new
        mirror.move(rows, target, rng.integers(0, n, len(target)).tolist())
    assert longest > ROOM[0]  # more than one bin was in use


def test_one_long_answer_does_not_make_room_for_all() -> None:
    store = AnswerStore()
    rows, new = torch.arange(100), torch.zeros(100, HEADS, D)
    for length in range(4):
        for place in store.make_room(rows, torch.full((100,), length)):
            store.put(0, place, new[place.members], new[place.members])
    for length in range(4, 128):
        for place in store.make_room(torch.tensor([7]), torch.tensor([length])):
            store.put(0, place, new[:1], new[:1])
    tokens = store.nbytes / (2 * HEADS * D * 4)
    assert tokens < 3 * (100 * 8 + 128)  # with one table: 100 times 128


def test_answers_without_stored_tokens_need_nothing_copied() -> None:
    store = AnswerStore()
    store.move(3, torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    store.move(2, torch.tensor([0]), torch.tensor([2]))
    (place,) = store.make_room(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert place.slots.tolist() == [0, 1]
    assert store.nbytes == 0


def test_answers_that_grow_leave_no_room_behind() -> None:
    store = AnswerStore()
    rows, new, nothing = torch.arange(100), torch.zeros(100, HEADS, D), torch.tensor([], dtype=torch.long)
    for length in range(40):
        for place in store.make_room(rows, torch.full((100,), length)):
            store.put(0, place, new, new)
        store.move(100, nothing, nothing)
    assert store.nbytes / (2 * HEADS * D * 4) <= 2 * 100 * 40  # not also the bins of 8 and of 32 tokens


def test_few_that_are_left_of_many_keep_their_tokens_in_little_room() -> None:
    mirror = Mirror(0)
    mirror.move(60, [], [])
    for _ in range(5):
        mirror.extend(list(range(60)))
    mirror.move(3, [0, 1], [50, 7])
    assert mirror.store.nbytes <= LAYERS * 2 * HEADS * D * 4 * 8 * 6
    for _ in range(5):
        mirror.extend([0, 1, 2])
        mirror.move(len(mirror.rows) + 9, [len(mirror.rows) + 2], [1])
