"""Where activations are read: TransformerLens's hooks by name, and named positions in a prompt and its answer.

Knows no model and no tokenizer, so that what a study says can be checked before either is loaded.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from semcal.errors import nearest

# What a block offers, in the order in which it is computed. `attn.hook_z` is [head, d_head] wide, the others d_model.
HEAD_HOOK = "attn.hook_z"
BLOCK_HOOKS = ("hook_resid_pre", HEAD_HOOK, "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
DEFAULT_HOOKS = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post")  # the embedding, then every block

LAST_PROMPT_TOKEN = "last_prompt_token"
LAST_QUESTION_TOKEN = "last_question_token"
QUESTION_MEAN = "question_mean"
ALL_QUESTION_TOKENS = "all_question_tokens"
BEFORE_ANSWER = "before_answer"
QUESTION_POSITIONS = (LAST_QUESTION_TOKEN, QUESTION_MEAN, ALL_QUESTION_TOKENS)
PROMPT_POSITIONS = (LAST_PROMPT_TOKEN, *QUESTION_POSITIONS)

_AFTER = re.compile(r"after_([1-9]\d*)_tokens")
_CHAIN = {f"chain_{share}": share / 100 for share in (0, 25, 50, 75, 100)}
_EXAMPLES = (*PROMPT_POSITIONS, "after_1_tokens", "after_4_tokens", *_CHAIN, BEFORE_ANSWER)
_DEEPEST = 256  # blocks that a pattern may mean while no model is known


def layer_place(hook: str) -> tuple[int, int, str]:
    """A key that sorts hooks as the model computes them: by the number of the block, not as text."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if block is None:
        return (-1 if hook in ("hook_embed", "hook_pos_embed", "embed") else _DEEPEST**2, 0, "")
    place = BLOCK_HOOKS.index(block[2]) if block[2] in BLOCK_HOOKS else len(BLOCK_HOOKS)
    return int(block[1]), place, block[2]


def check_position(name: str) -> None:
    """
    Raises:
        ValueError: not a valid position, naming the nearest.
    """
    if name not in _EXAMPLES and not _AFTER.fullmatch(name):
        known = f"{', '.join(PROMPT_POSITIONS)}, after_K_tokens, {', '.join(_CHAIN)}, {BEFORE_ANSWER}"
        raise ValueError(f"{name!r} is not a valid position{nearest(name, _EXAMPLES)}; expected one of {known}")


def in_answer(position: str) -> bool:
    """Whether a position lies in what was generated, and not in the prompt."""
    return position not in PROMPT_POSITIONS


def of_question(position: str, tokens: range) -> range:
    """The tokens of a prompt read at a position of its question, which is at `tokens`; those of `QUESTION_MEAN` are
    averaged."""
    return tokens[-1:] if position == LAST_QUESTION_TOKEN else tokens


def of_answer(position: str, length: int, before: int | None) -> int | None:
    """How many tokens of an answer have been read at a position; None where the answer has no such place.

    Args:
        length: Tokens of the answer, without what ended it. An answer of none has no place at all.
        before: Tokens before the answering phrase; None where it has none.
    """
    if length == 0:
        return None
    if position == BEFORE_ANSWER:
        return before
    if position in _CHAIN:
        return round(_CHAIN[position] * length)
    after = _AFTER.fullmatch(position)
    assert after is not None, position
    return int(after[1]) if int(after[1]) <= length else None


def nominal_place(position: str) -> dict[str, float]:
    """How far into the answer a position lies by its name: as a "share" of it, in "token"s, at its start in both; empty
    where the name does not say."""
    if position == LAST_PROMPT_TOKEN:
        return {"share": 0.0, "token": 0.0}
    if position in _CHAIN:
        return {"share": _CHAIN[position]}
    after = _AFTER.fullmatch(position)
    return {"token": float(after[1])} if after else {}


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The hooks that a shell-style pattern means."""
    return [name for name in names if fnmatchcase(name, pattern)]


def check_hook(pattern: str) -> None:
    """
    Raises:
        ValueError: a pattern that means no hook of any model, naming the nearest.
    """
    if not any(matching(pattern, block_hooks(i)) for i in range(_DEEPEST)):
        raise ValueError(f"{pattern!r} is not a valid hook{nearest(pattern, whole_families(BLOCK_HOOKS))}")


def block_hooks(block: int) -> list[str]:
    """The names of what one block may offer, in order."""
    return [f"blocks.{block}.{hook}" for hook in BLOCK_HOOKS]


def block_of(hook: str) -> int | None:
    """The block of a hook, from 0; None where the name does not tell."""
    found = re.match(r"blocks\.(\d+)\.", hook)
    return int(found[1]) if found else None


def whole_families(hooks: Sequence[str]) -> list[str]:
    """Patterns that mean a hook in every block."""
    return [f"blocks.*.{hook}" for hook in hooks]


def reads_heads_only(patterns: Sequence[str]) -> bool:
    """Whether patterns mean nothing of width d_model, which is what probes read."""
    known = [n for i in (0, 1, 2) for n in block_hooks(i) if not is_of_heads(n)]
    return not any(matching(re.sub(r"^blocks\.\d+", "blocks.0", pattern), known) for pattern in patterns)


def reads_residual(patterns: Sequence[str]) -> bool:
    """Whether patterns mean any place of the residual stream itself, rather than only what is added to it."""
    blocks = (block_hooks(i) for i in range(_DEEPEST))
    return any(is_residual(name) for names in blocks for p in patterns for name in matching(p, names))


def is_residual(hook: str) -> bool:
    return ".hook_resid_" in hook


def is_of_heads(hook: str) -> bool:
    return hook.endswith(f".{HEAD_HOOK}")
