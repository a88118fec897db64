"""The tree of answer prefixes: how much is decided after i tokens, and tilting towards the answer token by token.

At a prefix z_≤i the model's distribution over classes is what the answers below it say, `g_i(k) = Pr[B = k | x, z_≤i]`
(arXiv 2511.04869, Theorem 9, for k the semantic answer). Token ids, weights and labels in, numbers out.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def expected_confidence(
    ids: Sequence[Sequence[int]], weight: Sequence[float] | np.ndarray, classes: Sequence[Hashable]
) -> np.ndarray:
    """Expected largest class probability after i = 0, 1, ..., L tokens: `[L + 1]`, L the longest answer.

    E over z_≤i of max_k Pr[B = k | x, z_≤i] = Σ over prefixes of max_k weight(prefix, k), over the whole weight. An
    answer that has ended keeps its last prefix. The value never falls with i and is 1 at the end.

    With weights that are counts of samples, deep prefixes hold few samples and look more decided than they are, as
    B-confidence itself does at small M; with exact masses there is no such bias.

    Args:
        ids: token ids of each distinct answer.
        weight: `[answer]` counts or masses.
        classes: `[answer]` semantic classes.

    Raises:
        ValueError: lengths disagree, or the total weight is 0.
    """
    if not len(ids) == len(weight) == len(classes):
        raise ValueError(f"{len(ids)} answers, {len(weight)} weights and {len(classes)} classes: lengths must agree")
    total = float(np.sum(weight))
    if not total > 0:
        raise ValueError("the answers have a total weight of 0; expected more")
    rows = [(tuple(i), float(w), k) for i, w, k in zip(ids, weight, classes, strict=True)]
    expected = np.empty(max(len(i) for i, _, _ in rows) + 1)
    for depth in range(len(expected)):
        below: dict[tuple[int, ...], dict[Hashable, float]] = defaultdict(lambda: defaultdict(float))
        for answer, w, label in rows:
            below[answer[:depth]][label] += w
        expected[depth] = sum(max(shares.values()) for shares in below.values()) / total
    return expected


Ids = tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """What lies below one prefix of an answer tree.

    Attributes:
        mass: of all answers that begin with it, the whole tree having 1.
        g: share of that mass whose answers are in the class k*: intermediate B-confidence.
    """

    mass: float
    g: float


def answer_tree(ids: Sequence[Sequence[int]], mass: Sequence[float], is_top: Sequence[bool]) -> dict[Ids, Branch]:
    """Every prefix of the answers, the empty one (whose g is the B-confidence) and whole answers (g = 0 or 1) included.

    Args:
        ids: token ids of each distinct answer, none of them a prefix of another.
        mass: `[answer]` probabilities above 0. The rest up to 1 is unexplored; the tree holds the explored part,
            renormalised.
        is_top: `[answer]` whether the answer is in the class k*.

    Raises:
        ValueError: lengths disagree, no answers, a mass that is not above 0, or an answer that is a prefix of another.
    """
    if not len(ids) == len(mass) == len(is_top) or not len(ids):
        raise ValueError(
            f"{len(ids)} answers, {len(mass)} masses and {len(is_top)} flags; expected one of each per answer"
        )
    if not min(mass) > 0:
        raise ValueError(f"an answer has mass {min(mass)}; expected masses above 0")
    below: dict[Ids, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for answer, own, top in zip(ids, mass, is_top, strict=True):
        for end in range(len(answer) + 1):
            both = below[tuple(answer[:end])]
            both[0] += own
            both[1] += own * top
    for answer, own in zip(ids, mass, strict=True):
        if below[tuple(answer)][0] > own:
            raise ValueError(
                f"answer {tuple(answer)} is a prefix of another or a duplicate; include the final token of each"
            )
    total = below[()][0]
    return {prefix: Branch(whole / total, top / whole) for prefix, (whole, top) in below.items()}


def tilted_logprobs(logprobs: ArrayLike, g: ArrayLike, g_next: ArrayLike, tau: float) -> np.ndarray:
    """Log-probabilities of tokens under the tilted model, in nats, elementwise.

    p'(z | x, prefix) = p(z | x, prefix) (1 + g_next (e^tau - 1)) / (1 + g (e^tau - 1)) (Theorem 9). Over all tokens
    they sum to 1 as p does, for g is the mean of g_next.

    Args:
        logprobs: of the tokens under the model itself.
        g: intermediate B-confidence of the prefix.
        g_next: of the prefix with the token.
        tau: added to the log weight of every answer in k*, in nats.
    """
    grow = np.expm1(tau)
    return np.asarray(logprobs) + np.log1p(np.asarray(g_next) * grow) - np.log1p(np.asarray(g) * grow)


def tilt_along(answer: Sequence[int], logprobs: ArrayLike, tree: Mapping[Ids, Branch], tau: float) -> np.ndarray:
    """The tilted log-probability `[L]` of each token of one answer of the tree, given the model's own `[L]`.

    Raises:
        ValueError: an answer that is not in the tree, or a number of log-probabilities other than that of tokens.
    """
    prefixes = [tuple(answer[:end]) for end in range(len(answer) + 1)]
    if prefixes[-1] not in tree:
        raise ValueError(f"answer {prefixes[-1]} is not in the tree, so its intermediate B-confidences are unknown")
    if np.shape(logprobs) != (len(answer),):
        raise ValueError(f"{len(answer)} tokens but log-probabilities of shape {np.shape(logprobs)}")
    g = np.array([tree[prefix].g for prefix in prefixes])
    return tilted_logprobs(logprobs, g[:-1], g[1:], tau)


@dataclass(frozen=True)
class TokenTilt:
    """The log loss of the gold answers that tilting recovers, computed token by token and from the classes.

    Attributes:
        sequence_drop: mean fall of -log p(gold answer), the tilted model's tokens multiplied out; nats per question.
        class_drop: mean of tau 1[gold in k*] - log(1 + c (e^tau - 1)) over the same questions; equal by Theorem 9.
        largest_difference: between the two, over questions.
        followed: share of questions whose gold answer was explored, which both means are over; NaN means if none was.
    """

    sequence_drop: float
    class_drop: float
    largest_difference: float
    followed: float


def token_tilt(
    ids: Sequence[Sequence[Sequence[int]]],
    mass: Sequence[Sequence[float]],
    is_top: Sequence[Sequence[bool]],
    is_gold: Sequence[Sequence[bool]],
    tau: Sequence[float] | np.ndarray,
) -> TokenTilt:
    """Both drops over the exactly enumerated questions of a run.

    The model is replaced by its explored part, renormalised: next-token probabilities are ratios of the masses of
    prefixes, and c is the top class's share of the explored mass. Unexplored answers have no probability, and a
    question none of whose gold answers was explored is left out of both means (`followed` is the share of the others).
    Where k* is a gold class, the gold answer is one of k*'s; otherwise one of all gold answers; of several, the mean by
    mass.

    Args:
        ids: token ids of each answer of each question.
        mass: their probabilities.
        is_top: whether they are in the question's class k*; of tied classes, one.
        is_gold: whether they are correct.
        tau: `[question]` in nats, such as `LossGap.tilts`.

    Raises:
        ValueError: lengths disagree, or as `answer_tree`.
    """
    sequence, classes = [], []
    for answers, masses, top, gold, shift in zip(ids, mass, is_top, is_gold, tau, strict=True):
        tree = answer_tree(answers, masses, top)
        correct = np.asarray(gold, dtype=bool)
        in_top = correct & np.asarray(top, dtype=bool)
        followed = in_top if in_top.any() else correct
        if not followed.any():
            continue
        drops = []
        for answer in (answer for answer, chosen in zip(answers, followed, strict=True) if chosen):
            reached = np.log([tree[tuple(answer[:end])].mass for end in range(len(answer) + 1)])
            own = np.diff(reached)
            drops.append(tilt_along(answer, own, tree, shift).sum() - own.sum())
        sequence.append(np.average(drops, weights=np.asarray(masses)[followed]))
        classes.append(shift * in_top.any() - np.log1p(tree[()].g * np.expm1(shift)))
    if not sequence:
        return TokenTilt(np.nan, np.nan, np.nan, 0.0)
    difference = np.abs(np.array(sequence) - classes).max()
    return TokenTilt(
        float(np.mean(sequence)), float(np.mean(classes)), float(difference), len(sequence) / max(1, len(ids))
    )
