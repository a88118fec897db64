"""TransformerLens's hooks on a plain Hugging Face model: which module each name means, and how to look there.

Modules are found by the few names that architectures give them, and what was found is held to the sums that define it:
a block offers `hook_attn_out` and `hook_mlp_out` only if they are what it adds to the residual stream, and
`hook_resid_mid` only if the MLP reads the stream after attention. Tests assert equality with TransformerBridge.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from semcal.errors import UserError, nearest
from semcal.positions import BLOCK_HOOKS, HEAD_HOOK, matching, whole_families

_ATTENTION = ("self_attn", "self_attention", "attention", "attn")
_OUTPUT = ("o_proj", "dense", "c_proj", "out_proj")
_MLP = ("mlp", "feed_forward")
_MLP_NORM = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
_COMPONENTS = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out")
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest value


@dataclass(frozen=True)
class Hook:
    """One place in a model.

    Attributes:
        name: TransformerLens's.
        module: Where to look.
        before: At what goes into the module (else at what comes out).
        heads: Into how many heads the last axis is to be parted; 0 where it is not.
    """

    name: str
    module: nn.Module
    before: bool = False
    heads: int = 0

    def attach(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `see` with [question, position, width] at every pass, until the handle is removed.

        A tensor that `see` returns takes the place of what it was shown, in all that is computed from it.
        """

        def going_in(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            new = see(args[0] if args else kwargs["hidden_states"])
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        def coming_out(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            new = see(output[0] if isinstance(output, tuple) else output)
            return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

        if self.before:
            return self.module.register_forward_pre_hook(going_in, with_kwargs=True)
        return self.module.register_forward_hook(coming_out)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal LM, in order.

    Raises:
        TypeError: an architecture without a single stack of decoder layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise TypeError(
            f"{type(model).__name__} has no stack of {depth} decoder layers to read the residual stream from"
        )
    return stacks[0]


def choose_hooks(model: PreTrainedModel, patterns: Sequence[str]) -> tuple[Hook, ...]:
    """The hooks that any of some shell-style patterns means, in the order in which the model computes them.

    Raises:
        UserError: a pattern that means no hook of this model, naming the nearest.
    """
    offered = {hook.name: hook for hook in _named(model)}
    certain = {n for n in offered if not n.endswith(_COMPONENTS)}
    # Components are tried out only where they are needed, or where an error lists them.
    if any(matching(p, offered.keys() - certain) or not matching(p, certain) for p in patterns):
        refuted = _refuted(model, offered)
        offered = {name: hook for name, hook in offered.items() if name not in refuted}
    for pattern in patterns:
        if not matching(pattern, offered):
            kinds = [kind for kind in BLOCK_HOOKS if any(name.endswith(f".{kind}") for name in offered)]
            raise UserError(
                f"hook {pattern!r} matches nothing in {type(model).__name__}"
                f"{nearest(pattern, [*whole_families(kinds), *offered])}; its blocks offer {', '.join(kinds)}"
            )
    return tuple(hook for name, hook in offered.items() if any(matching(p, [name]) for p in patterns))


def _named(model: PreTrainedModel) -> Iterator[Hook]:
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)
    for i, layer in enumerate(decoder_layers(model)):
        found = _in_block(layer, heads)
        for kind in BLOCK_HOOKS:
            if kind in found:
                module, before = found[kind]
                yield Hook(f"blocks.{i}.{kind}", module, before, heads if kind == HEAD_HOOK else 0)


def _in_block(layer: nn.Module, heads: int) -> dict[str, tuple[nn.Module, bool]]:
    """Kind of hook -> (module, whether to look at what goes in), for one decoder layer."""
    found: dict[str, tuple[nn.Module, bool]] = {"hook_resid_pre": (layer, True), "hook_resid_post": (layer, False)}
    attention, mlp, norm = (_child(layer, names) for names in (_ATTENTION, _MLP, _MLP_NORM))
    after_mlp = _child(layer, ("post_feedforward_layernorm",))
    if attention is not None:
        # Where a norm follows the MLP, another follows attention, and what is added has been through them.
        normed = _child(layer, ("post_attention_layernorm",)) if after_mlp is not None else None
        found["hook_attn_out"] = (normed or attention, False)
        output = _child(attention, _OUTPUT)
        if output is not None and heads and _width(output) % heads == 0:
            found[HEAD_HOOK] = (output, True)
    if mlp is not None:
        found["hook_mlp_out"] = (after_mlp or mlp, False)
        norm = _child(layer, ("pre_feedforward_layernorm",)) if after_mlp is not None else norm
        if norm is not None or after_mlp is not None:
            found["hook_resid_mid"] = (norm or mlp, True)
    return found


def _child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in names if name in children), None)


def _width(projection: nn.Module) -> int:
    """How many features go into a projection (a Linear, or GPT-2's Conv1D, whose weight lies the other way)."""
    features = getattr(projection, "in_features", None)
    return int(features if features is not None else getattr(projection, "nx", 0) or 1)


@torch.inference_mode()
def _refuted(model: PreTrainedModel, offered: dict[str, Hook]) -> set[str]:
    """The components that are not what their names say, block by block, by one pass over four tokens."""
    seen: dict[str, Tensor] = {}
    device = next(model.get_input_embeddings().parameters()).device
    if device.type == "meta":  # without weights nothing can be tried out
        return set()
    with ExitStack() as attached:
        for name, hook in offered.items():
            handle = hook.attach(lambda hidden, name=name: seen.__setitem__(name, hidden.detach().float().cpu()))
            attached.callback(handle.remove)
        model(input_ids=torch.arange(4, device=device)[None], use_cache=False)
    refuted: set[str] = set()
    tolerance = _TOLERANCE.get(model.dtype, 5e-2)
    for i in range(len(decoder_layers(model))):
        pre, attention, middle, mlp, post = (
            seen.get(f"blocks.{i}.{kind}")
            for kind in ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
        )
        assert pre is not None
        assert post is not None
        if attention is None or mlp is None or not _close(pre + attention + mlp, post, tolerance):
            refuted |= {f"blocks.{i}.{kind}" for kind in _COMPONENTS}
        elif middle is None or not _close(pre + attention, middle, tolerance):
            refuted.add(f"blocks.{i}.hook_resid_mid")
    return refuted


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
