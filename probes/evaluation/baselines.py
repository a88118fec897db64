"""What a probe must beat: the first token's distribution, and activations of a model that has learnt nothing.

The other baselines are elsewhere: the marginal is the 0 of every score, the embedding is a layer of its own, words and
lengths are `probes.evaluation.texts.Texts`, the classes that first tokens name are `probes.rungs.lens.LensProbe`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from probes.activations.layers import Layers
from probes.evaluation.result import Evaluation
from probes.rungs.lens import first_token_facts
from semcal.models.checkpoint import LanguageModel
from semcal.seeds import keyed_generator


def marginal_row(of: Evaluation) -> pd.DataFrame:
    """The row "baseline:marginal" of an evaluation: it explains 0 by definition, and leaves all of its nats."""
    row = of.frame.iloc[:1].assign(rung="baseline:marginal", layer="", choice="")
    row[["explained", "low", "high"]] = 0.0
    row[["of_ceiling", "of_ceiling_low", "of_ceiling_high"]] = 0.0 if row["ceiling"].item() > 0 else np.nan
    row[["control", "selectivity", "null_q95", "p_value", "penalty"]] = np.nan
    return row.assign(probe_nats=row["baseline_nats"])


def first_token_features(model: LanguageModel, residual: np.ndarray) -> Layers:
    """How sure the model is of its first token, as if it were a layer of two features.

    Its entropy and the logarithm of its greatest probability, in nats: what is known without any probe. They say
    nothing of which class it is; for that, see `LensProbe`.

    Args:
        model: whose residual stream it is.
        residual: [question, d], of the last block, before the final norm.
    """
    return Layers.of(first_token_facts(model, residual)[:, None], ["first-token entropy"])


def random_init_like(model: LanguageModel, seed: int) -> LanguageModel:
    """The same architecture and tokenizer with weights fresh from its own initialisation.

    A probe of its activations says how much of a score is owed to the tokens near the end of the prompt and to the size
    of the layer, rather than to anything the model knows (Zhang & Bowman 2018, arXiv 1809.10040).
    Seeded, on the same device and in the same precision; the global random state is left as it was.
    """
    purpose = int(keyed_generator(seed, "random weights").integers(2**62))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(purpose)
        fresh = AutoModelForCausalLM.from_config(model.model.config).to(model.dtype).to(model.device).eval()
    return replace(model, model=fresh, path=f"{model.path} (random weights)", weights_hash=f"random:{seed}")
