"""Names of hooks and positions: what is none is refused with the nearest, and each position means one place."""

from __future__ import annotations

import pytest

from semcal.positions import (
    DEFAULT_HOOKS,
    block_hooks,
    check_hook,
    check_position,
    matching,
    nominal_place,
    of_answer,
    of_question,
    reads_heads_only,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last_promt_token", "'last_promt_token' is not a valid position, did you mean 'last_prompt_token'"),
        ("after_0_tokens", "did you mean 'after_[14]_tokens'"),
        ("after_4_token", "did you mean 'after_4_tokens'"),
        ("chain_30", "did you mean 'chain_(0|50)'"),
        ("middle", "expected one of last_prompt_token, .*after_K_tokens"),
    ],
)
def test_what_is_no_position_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        check_position(name)


def test_a_pattern_that_means_no_hook_of_any_model_is_refused_with_the_nearest():
    for pattern in (*DEFAULT_HOOKS, "blocks.31.hook_mlp_out", "blocks.*.attn.hook_z", "blocks.[12].*"):
        check_hook(pattern)
    with pytest.raises(ValueError, match=r"is not a valid hook, did you mean 'blocks\.\*\.hook_resid_post'"):
        check_hook("blocks.*.hook_resid_pst")
    assert reads_heads_only(["blocks.*.attn.hook_z"])
    assert not reads_heads_only(["blocks.*.attn.hook_z", "blocks.2.hook_mlp_out"])
    assert matching("blocks.*.hook_resid_*", block_hooks(1)) == [
        f"blocks.1.hook_resid_{end}" for end in ("pre", "mid", "post")
    ]


def test_every_position_of_an_answer_counts_the_tokens_read():
    at = {p: of_answer(p, 10, 7) for p in ("chain_0", "chain_25", "chain_50", "chain_100", "after_10_tokens")}
    assert at == {"chain_0": 0, "chain_25": 2, "chain_50": 5, "chain_100": 10, "after_10_tokens": 10}
    assert of_answer("after_11_tokens", 10, 7) is None
    assert of_answer("before_answer", 10, 7) == 7
    assert of_answer("before_answer", 10, None) is None
    assert of_answer("chain_0", 0, 0) is None


def test_positions_of_a_question():
    assert list(of_question("last_question_token", range(3, 7))) == [6]
    assert of_question("question_mean", range(3, 7)) == of_question("all_question_tokens", range(3, 7)) == range(3, 7)


@pytest.mark.parametrize(
    ("position", "place"),
    [
        ("last_prompt_token", {"share": 0, "token": 0}),
        ("chain_25", {"share": 0.25}),
        ("after_4_tokens", {"token": 4}),
        ("before_answer", {}),
        ("question_mean", {}),
    ],
)
def test_a_position_says_by_its_name_how_far_into_the_answer_it_lies(position, place):
    assert nominal_place(position) == place
