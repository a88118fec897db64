"""The KL gap of a run: what a probe still misses of its class distribution, in nats, from the held-out gaps of every
question that `semcal probe` stores.

Knows the table of a run's probe losses; no rules.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from probes.evaluation.kl_gap import at_best_layer
from probes.evaluation.result import BILINEAR, GENERATIVE, LINEAR
from semcal.calibration.inference.paired import Leaves, leaves, plain_mean
from semcal.positions import LAST_PROMPT_TOKEN

RUNGS = (GENERATIVE, "lora", BILINEAR, LINEAR)  # the one to take first


def telling_losses(losses: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Run.probe_losses` whose gaps say what is missed: none where an earlier version of semcal wrote them,
    and none of the bilinear probe where nothing tells how many classes there are that no question gave (`universe` of
    `Run.probes`), because its gap may then be far too low."""
    if "gap_nats" not in losses:
        return losses.iloc[:0]
    if (
        "universe" not in probes
        or not np.isinf(probes.loc[probes["rung"] == BILINEAR, "universe"].to_numpy(float)).any()
    ):
        return losses
    return losses.loc[losses["rung"] != BILINEAR, :]


def kl_gaps(losses: pd.DataFrame, group: Mapping[str, str], *, stratum: str, seed: int) -> dict[str, Leaves]:
    """Rung -> KL gap at the last prompt token (`probes.evaluation.kl_gap`), nats, of the fitted rungs among RUNGS.

    A rung fitted at several layers is taken at the one that does best on the other half of the groups; no layer is
    chosen by the questions it is measured on.

    Args:
        losses: `Run.probe_losses`.
        group: question id -> group; whole groups are halved and left out.
        stratum: name of the questions, see `Leaves`.
        seed: of the halves and of the blocks left out.
    """
    if losses.empty:
        return {}
    here = losses.loc[losses["position"] == LAST_PROMPT_TOKEN, :]
    found = {}
    for rung in RUNGS:
        own = here.loc[here["rung"] == rung, :]
        if own.empty:
            continue
        wide = own.pivot(index="layer", columns="question_id", values="gap_nats").dropna(axis=1)  # [layer, question]
        if wide.empty:
            continue
        labels = np.array([group[str(q)] for q in wide.columns])
        nats = at_best_layer(wide.to_numpy(float), labels, seed)
        found[rung] = leaves(plain_mean, nats, nats, stratum=stratum, group=labels, seed=seed)
    return found
