"""Class distributions of questions that share no vocabulary: when a run's are taken so, what a probe knows of its
classes, and the rows of the bilinear probe, of baselines in the same form and of the density head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from experiments.config.study import Cell, ProbesConfig
from experiments.sample.models import Models
from probes.evaluation.baselines import held_out_marginal
from probes.evaluation.folds import nested_folds
from probes.evaluation.layerwise import CrossValidation, Source
from probes.evaluation.open_layers import OpenEvaluation, candidates_alone, evaluate_open
from probes.evaluation.result import (
    BASELINE,
    BILINEAR,
    CANDIDATES,
    DENSITY,
    KL_EXPLAINED,
    MARGINAL,
    Evaluation,
    OpenPrediction,
    Seeds,
    open_evaluation,
)
from probes.rungs.class_texts import Encoder, UnwritableError, class_features, class_texts
from probes.rungs.density import density_predictions
from probes.solver.training import named
from probes.targets.entropy import Entropies
from probes.targets.open import OpenTarget, Universe, open_entropies, open_target, pooled_share
from semcal.arrays import FloatArray
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable

if TYPE_CHECKING:
    from semcal.models.text_models import Embedder

MOST_POOLED = 0.05  # of the mass, where `probes.target` is auto and classes are still taken as closed
log = logging.getLogger(__name__)
_SPELLED = 128  # axes of spellings


def is_open(cell: Cell, table: ClassTable) -> bool:
    """Whether the probes of a run predict all of its classes, and not one vocabulary with the light ones pooled."""
    if cell.probes.target == "auto":
        return pooled_share(table, cell.probes.max_classes) > MOST_POOLED
    return cell.probes.target == "open"


def sentence_encoder(probes: ProbesConfig) -> Encoder | None:
    """The model that `probes.encoder` names, if one is named.

    Raises:
        UserError: it is missing or no sentence-transformers model.
    """
    if not probes.encoder:
        return None
    try:
        return _embedder(probes.encoder, probes.device).embed
    except UserError as error:
        raise UserError(f"probes.encoder: {error}") from None


@cache  # it is small, and every cell asks for it
def _embedder(path: str, device: str) -> Embedder:
    from semcal.models.text_models import Embedder

    return Embedder(path, device=device)


def features_of(cell: Cell, run: Run, labels: Sequence[str], models: Models) -> dict[str, FloatArray]:
    """Label -> [feature], by which a probe knows a class: embeddings of its text by the run's own model, and by the
    sentence encoder of the study if it has one. Without an encoder, where a server holds that model or its tokenizer
    cannot write a class, the spelling (letters in twos to fours, on their leading axes)."""
    encoder, values = sentence_encoder(cell.probes), None
    if not cell.model.is_served:
        try:
            values = class_features(models.of_run(cell, run), labels, encoder=encoder)
        except UnwritableError as error:
            by = "their spelling" if encoder is None else "the sentence encoder"
            log.warning("%s: classes are known to the probes by %s alone: %s", cell.label, by, error)
    if values is None and encoder is not None:
        values = np.asarray(encoder(class_texts(labels)), dtype=np.float64)
    if values is None or not _told_apart(values):
        values = spellings(labels, seed=cell.seed)
    return dict(zip(labels, values, strict=True))


def spellings(labels: Sequence[str], *, seed: int) -> FloatArray:
    """TF-IDF of two to four letters in a row, within words, on at most 128 axes: [label, axis]. Where that tells no
    labels apart, as with two of them or where all differ in capitals or spaces alone, each has an axis of its own."""
    if len(labels) < 2 or not any(label.strip() for label in labels):
        return np.eye(len(labels))
    counts: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit_transform(labels)
    axes = min(_SPELLED, *(size - 1 for size in counts.shape))
    with np.errstate(invalid="ignore"):  # it divides by the variance, which two labels have none of on their one axis
        found = TruncatedSVD(max(1, axes), random_state=seed).fit_transform(counts)
    return found if _told_apart(found) else np.eye(len(labels))


def _told_apart(features: FloatArray) -> bool:
    return bool((np.ptp(features, axis=0) > 1e-6).any())


@dataclass(frozen=True)
class OpenClasses:
    """What is to be predicted of some questions, and how it is measured.

    Attributes:
        features: [class, feature] of `target.classes`.
        found: entropies of the target.
        group: [question].
        how: folds, penalties and device of the cross-validation.
        resampling: of intervals; its seed is that of everything drawn, as in other rungs.
    """

    target: OpenTarget
    features: FloatArray
    found: Entropies
    group: Sequence[str]
    how: CrossValidation
    resampling: Resampling

    @classmethod
    def of(
        cls, table: ClassTable, features: dict[str, FloatArray], how: CrossValidation, resampling: Resampling
    ) -> OpenClasses:
        target = open_target(table)
        known = np.stack([features[label] for label in target.classes])
        return cls(target, known, open_entropies(table), table.groups.tolist(), how, resampling)

    def fit(self, source: Source, *, exchanges: int = 0) -> OpenEvaluation:
        """The bilinear probe on every layer of a source; see `evaluate_open`."""
        how, seed = replace(self.how, exchanges=exchanges), self.resampling.seed
        return evaluate_open(source, self.target, self.features, group=self.group, how=how, seed=seed)

    def evaluation(self, found: OpenEvaluation, *, rung: str = BILINEAR) -> Evaluation:
        """Its share explained is of the KL that the candidate-only model leaves."""
        finite = np.where(np.isfinite(found.penalty), found.penalty, np.nan)
        chosen = [f"penalty={np.nanmedian(row):g}" if np.isfinite(row).any() else "candidate-only" for row in finite]
        columns = {"layer": list(found.layers), "p_value": found.p_value, "choice": chosen}
        return self._read(OpenPrediction(found.log_q, found.candidate_log_q, CANDIDATES), rung, columns)

    @cached_property
    def candidates(self) -> FloatArray:
        """[entry] log-probabilities by the candidate-only model, of which every share explained of open classes is."""
        seed = self.resampling.seed
        return candidates_alone(self.target, self.features, group=self.group, how=self.how, seed=seed)

    def baseline(self, name: str, source: Source) -> Evaluation:
        """A baseline of the bilinear form, by other layers than the run's own; without a p-value."""
        return self.evaluation(self.fit(source), rung=f"{BASELINE}{name}")

    def marginal(self) -> Evaluation:
        """The mean distribution of other questions, the same for all."""
        folds = nested_folds(self.group, self.how.folds, Seeds.of(self.resampling.seed).folds)
        log_q = held_out_marginal(self.target, folds, Universe.of(self.target, self.group).size)
        return self._read(OpenPrediction(log_q[None], log_q), f"{BASELINE}{MARGINAL}", {"layer": [""]})

    def density(self, states: FloatArray, layer: str) -> Evaluation:
        """The density head on one layer's activations [question, d]; see `density_predictions`."""
        folds, seed = self.how.folds, self.resampling.seed
        with named(f"{DENSITY}, {layer}"):
            found = density_predictions(states, self.target, self.features, self.group, folds=folds, seed=seed)
        chosen = f"components={', '.join(map(str, sorted(set(found.components))))}" if found.components else ""
        predicted = OpenPrediction(found.log_q[None], self.candidates, CANDIDATES)
        return self._read(predicted, DENSITY, {"layer": [layer], "choice": chosen})

    def _read(self, predicted: OpenPrediction, rung: str, columns: dict[str, Any]) -> Evaluation:
        return open_evaluation(
            predicted,
            {"rung": rung, "layer": columns.pop("layer"), "measure": KL_EXPLAINED},
            target=self.target,
            found=self.found,
            group=self.group,
            resampling=replace(self.resampling, seed=Seeds.of(self.resampling.seed).bootstrap),
            columns=columns,
        )
