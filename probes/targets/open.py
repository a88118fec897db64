"""Targets without a common vocabulary: every question has its own candidate classes, for `BilinearProbe` to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.targets.closed import distributions_of
from semcal.models.checkpoint import LanguageModel
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class OpenTarget:
    """Class distributions over each question's own candidates.

    Attributes:
        labels: [question] the labels of its candidates: its own classes, heaviest first, then distractors.
        distribution: [question, candidate], rows sum to 1; 0 for distractors and in the padding.
    """

    labels: tuple[tuple[str, ...], ...]
    distribution: np.ndarray


def open_target(table: ClassTable, *, distractors: int = 0, seed: int = 0) -> OpenTarget:
    """Candidates and their masses for `BilinearProbe`.

    Args:
        distractors: candidates added to each question that none of its samples fell into, drawn without replacement
            from the classes of the other questions, in proportion to the mass they have there. A distractor may be a
            class that more samples would have shown.
        seed: of the draws, which depend on a question's own labels and on the pool, not on its place.
    """
    total: dict[str, float] = {}
    own = [dict(sorted(row.items(), key=lambda item: (-item[1], item[0]))) for row in distributions_of(table)]
    for row in own:
        for label, mass in row.items():
            total[label] = total.get(label, 0.0) + mass
    pool = sorted(total)
    labels = []
    for masses in own:
        others = [label for label in pool if label not in masses] if distractors else []
        weights = np.array([total[label] for label in others])
        rng = keyed_generator(seed, "distractors", *masses)
        count = min(distractors, len(others))
        drawn = rng.choice(len(others), size=count, replace=False, p=weights / weights.sum()) if count else []
        labels.append((*masses, *(others[i] for i in drawn)))
    distribution = np.zeros((len(own), max(map(len, labels))))
    for row, masses in enumerate(own):
        distribution[row, : len(masses)] = list(masses.values())
    return OpenTarget(tuple(labels), distribution)


def text_embeddings(model: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """The mean of the model's input embeddings over the tokens of each text, a space before it: [text, e] float32.

    Raises:
        ValueError: a text without tokens.
    """
    table = next(model.model.get_input_embeddings().parameters())
    found = []
    for text in texts:
        ids = model.encode_rendered(f" {text}")
        if not ids:
            raise ValueError(f"the text {text!r} has no token; leave this class out")
        found.append(table[list(ids)].detach().float().mean(0).cpu().numpy())
    return np.stack(found)
