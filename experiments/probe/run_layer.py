"""What probes are fitted to, read from a run's folder: activations at one place, class masses, groups, gold classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.config.run_folder import stored_cell
from semcal.errors import UserError, nearest
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run


@dataclass(frozen=True)
class AtLayer:
    """A run at one layer of the last prompt token.

    Attributes:
        layer: TransformerLens's name of the hook.
        activations: [question, d_model].
        masses: [question] class -> mass.
        gold: [question] the classes that are correct; the unparsed one never is.
        group: [question].
        m: Samples a question; None where answers were enumerated.
    """

    layer: str
    activations: np.ndarray
    masses: Sequence[Mapping[str, float]]
    gold: Sequence[Collection[str]]
    group: list[str]
    m: int | None


def layers_of(run: Run) -> tuple[str, ...]:
    """Hook names captured at the last prompt token, in the order of the network.

    Raises:
        UserError: a run that captured nothing there.
    """
    captured = stored_cell(run).capture.positions
    if LAST_PROMPT_TOKEN not in captured:
        there = f"captured at {', '.join(captured)}" if captured else "holds no activations"
        raise UserError(
            f"{run.folder} {there}; run its study with capture.positions [{LAST_PROMPT_TOKEN}] under another name"
        )
    return run.activation_layers(LAST_PROMPT_TOKEN)


def read_layer(run: Run, layer: str | None = None) -> AtLayer:
    """A scored run at a layer, the last if none is named: fixed before looking, as in the summary table.

    Raises:
        UserError: nothing captured at the last prompt token, or not this layer, naming the nearest.
    """
    known = layers_of(run)
    name = known[-1] if layer is None else layer
    if name not in known:
        raise UserError(f"{run.folder} has no layer {name!r}{nearest(name, known)}; it has {', '.join(known)}")
    stored, classes = run.activations(LAST_PROMPT_TOKEN, [name]), run.class_table()
    return AtLayer(
        layer=name,
        activations=stored.values[:, 0],
        masses=classes.distributions,
        gold=classes.gold_classes,
        group=classes.groups.tolist(),
        m=classes.m,
    )
