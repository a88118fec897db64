"""The KL gap of a run: what a probe still misses of its class distribution, in nats, from the held-out losses that
`semcal probe` stores.

Knows the tables of a run's probes; no rules.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from probes.evaluation.result import LINEAR
from semcal.calibration.inference.paired import Leaves, leaves, plain_mean
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.seeds import keyed_generator

LORA = "lora"
RUNGS = (LORA, LINEAR)  # the one to take first


def kl_gaps(
    probes: pd.DataFrame, losses: pd.DataFrame, group: Mapping[str, str], *, stratum: str, seed: int
) -> dict[str, Leaves]:
    """Rung -> KL gap at the last prompt token, in nats, of the rungs that were fitted among RUNGS.

    The linear probe is taken at the layer that does best on the other half of the groups; no layer is chosen by the
    questions it is measured on. Where the ceiling that finite M sets is stored, the KL it leaves,
    (1 - ceiling) × the marginal's KL, is subtracted; the ceiling errs high, so the gap does as well.

    Args:
        probes, losses: `Run.probes` and `Run.probe_losses`.
        group: question id -> group; whole groups are halved and left out.
        stratum: name of the questions, see `Leaves`.
        seed: of the halves and of the blocks left out.
    """
    if losses.empty or probes.empty:
        return {}
    here = losses.loc[losses["position"] == LAST_PROMPT_TOKEN, :]
    found = {}
    for rung in RUNGS:
        own = here.loc[here["rung"] == rung, :]
        if own.empty:
            continue
        wide = own.pivot(index="layer", columns="question_id", values="probe_nats").dropna(axis=1)  # [layer, question]
        if wide.empty:
            continue
        labels = np.array([group[str(q)] for q in wide.columns])
        nats = _nested(wide.to_numpy(float), labels, seed) - _noise(probes, rung)
        found[rung] = leaves(plain_mean, nats, nats, stratum=stratum, group=labels, seed=seed)
    return found


def _nested(losses: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """[question] losses at the layer that is best on the other half of the groups, from `losses` [layer, question]."""
    labels = np.unique(group)
    if len(losses) == 1 or len(labels) < 2:
        return losses[0]
    chosen = keyed_generator(seed, "verdict", "layer").permutation(labels)[: len(labels) // 2]
    half = np.isin(group, chosen)
    best = [int(losses[:, other].mean(axis=1).argmin()) for other in (~half, half)]
    return np.where(half, losses[best[0]], losses[best[1]])


def _noise(probes: pd.DataFrame, rung: str) -> float:
    """KL in nats that finite M leaves to any predictor; 0 where no ceiling is stored."""
    rows = probes.loc[
        (probes["target"] == "classes") & (probes["rung"] == rung) & (probes["position"] == LAST_PROMPT_TOKEN), :
    ]
    noise = (1 - rows["ceiling"].clip(upper=1.0)) * rows["baseline_nats"]
    return 0.0 if noise.isna().all() else float(noise.max())
