"""A probe for open vocabularies: every question has candidates of its own, scored through embeddings of their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from probes.rungs.rung import Padded, Rung, check_activations
from probes.solver.rotation import rotate
from probes.solver.training import descend
from probes.targets.closed import distributions_of
from semcal.models.checkpoint import LanguageModel
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable

_NEVER = -1e4  # a logit in the padding: probability 0, and 0·log 0 stays 0


@dataclass(frozen=True)
class OpenQuestions(Padded):
    """Activations and the candidate classes of each question, padded to the longest list.

    Raises:
        ValueError: the shapes disagree, or a question has no candidate.
    """

    states: np.ndarray
    """[question, d]."""

    candidates: np.ndarray
    """[question, candidate, e], embeddings of the candidates' texts; 0 in the padding."""

    mask: np.ndarray
    """[question, candidate], True at candidates."""

    def __post_init__(self) -> None:
        if self.candidates.ndim != 3 or not len(self.states) == len(self.candidates) == len(self.mask):
            raise ValueError(
                f"states are {self.states.shape}, candidates {self.candidates.shape} and mask {self.mask.shape}; "
                "expected [question, d], [question, candidate, e] and [question, candidate]"
            )
        if not self.mask.any(1).all():
            raise ValueError(f"question {int(np.argmin(self.mask.any(1)))} has no candidate; leave it out")

    @classmethod
    def of(cls, states: np.ndarray, candidates: Sequence[np.ndarray]) -> OpenQuestions:
        """From states [question, d] and ragged candidates: for each question [its candidates, e]."""
        longest, width = max(map(len, candidates)), candidates[0].shape[-1]
        padded = np.zeros((len(candidates), longest, width))
        mask = np.zeros((len(candidates), longest), dtype=bool)
        for row, own in enumerate(candidates):
            padded[row, : len(own)] = own
            mask[row, : len(own)] = True
        return cls(states, padded, mask)


class BilinearProbe(Rung):
    """p(c | x) ∝ exp(hᵀ W e_c + bᵀ e_c) over the candidates of a question: one W for every class, seen or unseen.

    Minimises mean cross-entropy + λ/(2n)·(‖W‖² + ‖b‖²), h and e standardised over the training rows; convex, so there
    is nothing to seed. X is `OpenQuestions`; Y and predictions are [question, candidate], 0 in the padding.

    The baseline of `score` is not a marginal, for there is none: it is the candidate-only model p ∝ exp(bᵀ e_c),
    fitted to the same questions with the same λ. Where candidates are the classes that a question's own samples fell
    into, even that model knows which classes were drawn, and the share explained says only how well the probe spreads
    the mass among them. `open_target(..., distractors=...)` adds candidates that must get nothing.

    Args:
        penalty: λ.
        max_iter: L-BFGS steps at most.
        tol: nats by which a step must still lower the objective.

    Attributes:
        interaction_: [d, e], W for raw activations and embeddings.
        preference_: [e], what W and b make of an embedding at h = 0.
        baseline_preference_: [e], b of the candidate-only model, which takes the place of `marginal_`.
        objective_: nats.
    """

    def __init__(self, penalty: float = 1.0, max_iter: int = 500, tol: float = 1e-8) -> None:
        self.penalty = penalty
        self.max_iter = max_iter
        self.tol = tol

    def _inputs(self, X: OpenQuestions) -> OpenQuestions:
        if not isinstance(X, OpenQuestions):
            raise ValueError(f"X is a {type(X).__name__}; expected OpenQuestions(states, candidates, mask)")
        check_activations(X.states)
        check_activations(X.candidates, ndim=3)
        return X

    def _row_bytes(self, inputs: OpenQuestions) -> list[bytes]:
        rows = zip(inputs.states, inputs.candidates, inputs.mask, strict=True)
        return [state.tobytes() + own[mask].tobytes() for state, own, mask in rows]

    def _check_spread(self, inputs: OpenQuestions, Y: np.ndarray) -> None:
        if Y.shape != inputs.mask.shape or (Y[~inputs.mask] != 0).any():
            raise ValueError(
                f"Y is {Y.shape} and the candidates {inputs.mask.shape}; expected the same, Y 0 in the padding"
            )
        uniform = inputs.mask / inputs.mask.sum(1, keepdims=True)
        if len(Y) < 2 or np.allclose(Y, uniform):
            raise ValueError(
                f"{len(Y)} question(s) whose candidates all weigh the same teach a probe nothing; give at least 2 with "
                "several candidates, or add distractors"
            )

    def _learn_baseline(self, inputs: OpenQuestions, Y: Tensor) -> None:
        """There is no marginal; the candidate-only model is fitted together with the probe."""

    def _learn(self, inputs: OpenQuestions, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - nothing is split
        mask, n = torch.as_tensor(inputs.mask), len(Y)
        h = rotate(torch.as_tensor(inputs.states)[None], standardise=True)
        e = rotate(torch.as_tensor(inputs.candidates[inputs.mask])[None], standardise=True)
        E = torch.zeros(*mask.shape, e.scores.shape[2], dtype=torch.float64)
        E[mask] = e.scores[0]
        targets = (Y * n + mask / mask.sum(1, keepdim=True)) / (n + 1)  # `smoothed`, over a question's own candidates
        ones = torch.ones(n, 1, dtype=torch.float64)

        def fit(H: Tensor, spectrum: Tensor) -> tuple[Tensor, float]:
            """Theta [r, e's axes] for logits H Theta eᵀ, H [question, r]."""
            # In these units the Hessian is about the identity, and every axis is learnt at the same pace.
            stretch = (spectrum[:, None] / n * e.spectrum / mask.sum() + self.penalty / n).rsqrt()
            free = torch.zeros_like(stretch)

            def objective() -> Tensor:
                theta = stretch * free
                logits = torch.einsum("ne,nce->nc", H @ theta, E).masked_fill(~mask, _NEVER)
                log_q = torch.log_softmax(logits, 1)
                return -(targets * log_q).sum(1).mean() + self.penalty / (2 * n) * theta.square().sum()

            reached, converged = descend([free], objective, max_iter=self.max_iter, tol=self.tol)
            self._warn_unless(converged)
            return stretch * free, reached

        n_spectrum = torch.tensor([float(n)], dtype=torch.float64)
        theta, self.objective_ = fit(torch.cat([h.scores[0], ones], 1), torch.cat([h.spectrum[0], n_spectrum]))
        alone, _ = fit(ones, n_spectrum)
        out = e.basis[0] / e.standard.scale[0][:, None]  # [e, axes]
        interaction = (h.basis[0] / h.standard.scale[0][:, None]) @ theta[:-1] @ out.mT
        self.interaction_ = interaction.numpy()
        self.preference_ = (out @ theta[-1] - h.standard.mean[0] @ interaction).numpy()
        self.baseline_preference_ = (out @ alone[0]).numpy()

    def _log_probabilities(self, inputs: OpenQuestions) -> np.ndarray:
        return self._over_candidates(inputs, inputs.states.astype(np.float64) @ self.interaction_ + self.preference_)

    def _log_baseline(self, inputs: OpenQuestions) -> np.ndarray:
        return self._over_candidates(inputs, np.tile(self.baseline_preference_, (len(inputs), 1)))

    def _over_candidates(self, inputs: OpenQuestions, direction: np.ndarray) -> np.ndarray:
        """[question, candidate] log-probabilities from what each question looks for in an embedding, [question, e]."""
        if inputs.candidates.shape[2] != direction.shape[1]:
            raise ValueError(
                f"candidates have {inputs.candidates.shape[2]} features, the probe was fitted to {direction.shape[1]}; "
                "embed them alike"
            )
        logits = np.einsum("ne,nce->nc", direction, inputs.candidates.astype(np.float64))
        return log_softmax(np.where(inputs.mask, logits, _NEVER), axis=1)


def open_target(table: ClassTable, *, distractors: int = 0, seed: int = 0) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Candidates and their masses for `BilinearProbe`, where questions have no common vocabulary.

    Args:
        distractors: candidates added to each question that none of its samples fell into, drawn without replacement
            from the classes of the other questions, in proportion to the mass they have there. A distractor may be a
            class that more samples would have shown.
        seed: of the draws, which depend on a question's own labels and on the pool, not on its place.

    Returns:
        [question] the labels of its candidates: its own classes, heaviest first, then distractors. And their masses
        [question, candidate], rows sum to 1; 0 for distractors and in the padding.
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
    return labels, distribution


def text_embeddings(model: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """The mean of the model's input embeddings over the tokens of each text, a space before it: [text, e] float32.

    Raises:
        ValueError: a text without tokens.
    """
    table = next(model.model.get_input_embeddings().parameters())
    found = []
    for text in texts:
        ids = model.encode_rendered(f" {text}", [(0, len(text) + 1)])
        if not ids:
            raise ValueError(f"the text {text!r} has no token; leave this class out")
        found.append(table[list(ids)].detach().float().mean(0).cpu().numpy())
    return np.stack(found)
