"""Stop strings end an answer by text and leave names alone."""

from __future__ import annotations

import torch

from semcal.sampling.stopping import StopRule, cut

PIECES = ["", "J", ".", " R", " Tolkien", "\n", "Ques", "tion", ":", " x", "\nQuestion"]


def decode(ids):
    return "".join(PIECES[i] for i in ids)


def finished(rule, row):
    return bool(rule.finished(torch.tensor([row[-1]]), [row])[0])


def test_a_name_with_full_stops_is_not_cut():
    rule = StopRule(decode, ["\nQuestion:", "\n\n"], {0}, len(PIECES))
    row = []
    for token in [1, 2, 3, 2, 3, 2, 4, 2]:  # J. R. R. Tolkien.
        row.append(token)
        assert not finished(rule, row)
    assert cut(decode(row), ["\nQuestion:", "\n\n"]) == "J. R. R. Tolkien."


def test_every_way_to_tokenise_a_stop_string_stops():
    rule = StopRule(decode, ["\nQuestion:"], (), len(PIECES))
    assert finished(rule, [9, 5, 6, 7, 8])
    assert finished(rule, [9, 10, 8])
    assert not finished(rule, [9, 5, 6, 7])
    assert not finished(rule, [9, 6, 7, 8])


def test_end_of_sequence_stops_without_any_string():
    rule = StopRule(decode, [], {0}, len(PIECES))
    assert finished(rule, [4, 0])
    assert not finished(rule, [4, 5])


def test_cut_takes_the_earliest_stop():
    assert cut("a b c", ["c", "b"]) == "a "
    assert cut("a b c", ["x"]) == "a b c"
    assert cut("a b c", []) == "a b c"
