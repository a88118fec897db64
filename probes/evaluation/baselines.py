"""What a probe must beat: words and lengths, the first token's distribution, and activations of an untrained model.

The marginal is what every score is read against; the classes that first tokens name are `probes.rungs.lens.LensProbe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from probes.activations.layers import Layers
from probes.evaluation.folds import Fold
from probes.evaluation.result import BASELINE, Evaluation, gap_columns
from probes.rungs.lens import first_token_facts
from probes.targets.closed import MOST_POOLED
from probes.targets.open import OpenTarget
from semcal.arrays import FloatArray
from semcal.models.checkpoint import LanguageModel
from semcal.seeds import keyed_generator

TEXT_PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2)  # rows of TF-IDF have length 1, whatever their width
_MAX_FEATURES = 2000


@dataclass(frozen=True)
class Texts:
    """Questions as features: TF-IDF of words and pairs of words, and lengths. They can be read like one layer.

    The vocabulary, its weights and the scale of the lengths are those of the training questions of each fold. Words
    that occur in one training question only are left out: they say nothing about another.

    Attributes:
        texts: [question].
        lengths: [question, any number], e.g. characters of the question and tokens of the prompt; their logarithm is
            taken.
    """

    texts: tuple[str, ...]
    lengths: np.ndarray
    standardise: bool = False
    """TF-IDF rows have length 1; scaled to deviation 1, rare words would dominate."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.lengths.ndim != 2 or len(self.lengths) != len(self.texts):
            raise ValueError(f"lengths are {self.lengths.shape} for {len(self.texts)} texts; expected [question, any]")
        if not np.isfinite(self.lengths).all() or (self.lengths < 0).any():
            raise ValueError("a length is negative or not finite; expected counts of characters or tokens")

    @classmethod
    def of(cls, texts: Sequence[str], prompt_tokens: Sequence[int]) -> Texts:
        """From questions and the lengths of their prompts."""
        characters = [len(text) for text in texts]
        return cls(tuple(texts), np.stack([characters, np.asarray(prompt_tokens)], axis=1).astype(np.float64))

    @property
    def names(self) -> tuple[str, ...]:
        return ("tf-idf and length",)

    def __len__(self) -> int:
        return 1

    def parts(self, n: int) -> list[slice]:
        """One; n must be the number of texts.

        Raises:
            ValueError: it is not.
        """
        if n != len(self.texts):
            raise ValueError(f"there are {len(self.texts)} texts, but {n} targets; expected one each, in order")
        return [slice(0, 1)]

    def block(self, part: slice, n: int, device: str) -> Texts:  # noqa: ARG002 - texts are small
        return replace(self, device=device)

    def split(self, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
        """([1, n_train, d], [1, n_test, d]), float64; everything is learnt from the training rows."""
        logs = np.log1p(self.lengths)
        deviation = logs[train].std(0)
        scaled = np.where(deviation > 0, (logs - logs[train].mean(0)) / np.where(deviation > 0, deviation, 1), 0.0)
        parts = [scaled[train]], [scaled[test]]
        vectoriser = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=_MAX_FEATURES, token_pattern=r"(?u)\b\w+\b"
        )
        try:
            vectoriser.fit([self.texts[i] for i in train])
        except ValueError:  # no word is in two questions, so that only lengths remain
            pass
        else:
            for own, rows in zip(parts, (train, test), strict=True):
                own.append(vectoriser.transform([self.texts[i] for i in rows]).toarray())
        fitted, held_out = (torch.as_tensor(np.concatenate(own, axis=1), device=self.device)[None] for own in parts)
        return fitted, held_out


def baseline_row(of: Evaluation) -> pd.DataFrame:
    """The row of what an evaluation is read against, "baseline:marginal" or "baseline:candidate-only": it explains 0 by
    definition, and leaves all of its nats."""
    row = of.frame.iloc[:1].assign(rung=f"{BASELINE}{of.against}", layer="", choice="")
    shown = not row["pooled"].item() > MOST_POOLED
    row[["explained", "low", "high"]] = 0.0 if shown else np.nan
    row[["of_ceiling", "of_ceiling_low", "of_ceiling_high"]] = 0.0 if shown and row["ceiling"].item() > 0 else np.nan
    row[["control", "selectivity", "null_q95", "p_value", "penalty"]] = np.nan
    return row.assign(probe_nats=row["baseline_nats"], **gap_columns(of.gaps[-1:]))


def held_out_marginal(target: OpenTarget, folds: Sequence[Fold], size: float) -> FloatArray:
    """[entry] log-probabilities by the mean distribution of the other folds' questions, smoothed by one question that
    is uniform over all `size` classes that anyone may give (`Universe`), as closed marginals are over theirs."""
    found = np.empty(len(target.mass))
    for fold in folds:
        seen = target.entries(fold.train)
        total = np.bincount(target.column[seen], target.mass[seen], len(target.classes))
        own = target.entries(fold.test)
        found[own] = np.log((total + 1 / size) / (len(fold.train) + 1))[target.column[own]]
    return found


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
