"""Exact enumeration: every answer that matters with its probability, and a bound on the mass of all others.

A best-first search over the tree of answers: it always extends the likeliest open prefix, until the finished answers
hold all but epsilon of the mass, or the budget of rows is spent. There is no sampling noise: the mass of a class is at
least that of its answers, and at most that plus the unexplored mass.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from semcal.errors import UserError
from semcal.sampling.decoders import Observer, TreeDecoder, shared_prefix
from semcal.sampling.drawing import token_probabilities
from semcal.sampling.engine import Budget, refuse
from semcal.sampling.output_layer import whole
from semcal.sampling.paths import SHARED, choose_path
from semcal.sampling.records import LENGTH, STOP, Enumerated, Outcome, Prompt, Sampling
from semcal.sampling.stopping import StopRule

_AT_ONCE = 16  # prefixes of one question extended in one pass


@dataclass(frozen=True)
class SearchLimits:
    """When the search ends.

    Attributes:
        epsilon: It ends when less than this mass is unexplored; in (0, 1).
        row_budget: Or when this many prefixes of a question have been decoded. A continuation of less than
            epsilon / row_budget mass is never extended: that many of them together could not close the gap.

    Raises:
        UserError: a value out of range.
    """

    epsilon: float = 0.01
    row_budget: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise UserError(f"epsilon is {self.epsilon}; it must lie in (0, 1)")
        if self.row_budget < 1:
            raise UserError(f"row_budget is {self.row_budget}; it must be at least 1")


@dataclass
class _Node:
    """A prefix that was extended, with its likely continuations, likeliest first.

    Attributes:
        ids: Tokens of the prefix.
        row: Row of its keys and values; -1 for the question itself.
        tokens, logprobs: [child] continuations, and log-probabilities of prefix plus continuation, in nats.
    """

    ids: tuple[int, ...]
    row: int
    tokens: np.ndarray
    logprobs: np.ndarray


@dataclass
class _Search:
    prompt: Prompt
    slot: int
    frontier: list[tuple[float, int, _Node, int]] = field(default_factory=list)  # (-logprob, tie, node, child)
    outcomes: list[Outcome] = field(default_factory=list)
    explored: float = 0.0
    rows: list[int] = field(default_factory=list)
    decoded: int = 0
    pushed: int = 0

    def push(self, node: _Node, child: int) -> None:
        if child < len(node.tokens):
            self.pushed += 1
            heapq.heappush(self.frontier, (-float(node.logprobs[child]), self.pushed, node, child))

    def result(self) -> Enumerated:
        outcomes = sorted(self.outcomes, key=lambda o: (-o.logprob, o.ids))
        return Enumerated(self.prompt.key, tuple(outcomes), max(0.0, 1.0 - self.explored), self.decoded)


@torch.inference_mode()
def enumerate_answers(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: Sampling,
    stop_rule: StopRule,
    *,
    limits: SearchLimits = SearchLimits(),
    prefix: Sequence[int] | None = None,
    observer: Observer | None = None,
    on_answered: Callable[[int], None] = lambda _: None,
) -> Iterator[Enumerated]:
    """Answers of every prompt with their probabilities, question by question.

    Args:
        model: On one device; token ids are sent to the device of its embedding.
        settings: Temperature, top-k, top-p, length and stop strings; m and the seed are not used.
        limits: When the search ends.
        prefix: Tokens that all prompts begin with, read once and not observed; None takes all that they share.
        observer: Watches every prefill.
        on_answered: Called with the number of questions just finished.

    Raises:
        UserError: a model that the shared-prefix path does not serve.
        NonFiniteError: NaN or infinity in the logits.
    """
    if not prompts:
        return
    device = next(model.get_input_embeddings().parameters()).device
    served = choose_path(model, device, prompts)
    if served.path != SHARED:
        raise UserError(
            f"exact enumeration needs the shared-prefix path, which does not support this model: {served.why}; leave "
            "sampling.exact out"
        )
    prefix = prompts[0].ids[: shared_prefix(prompts)] if prefix is None else prefix
    decoder = TreeDecoder(model, device)
    decoder.share(prefix)
    budget = Budget.of(model, device)
    longest = max(len(p.ids) for p in prompts) - len(prefix)
    worst = longest + limits.row_budget * settings.max_new_tokens
    in_flight = max(1, min(budget.rows // _AT_ONCE, budget.positions // worst))
    floor = np.log(limits.epsilon / limits.row_budget)
    waiting, open_, free, top = deque(prompts), dict[int, _Search](), list[int](), 0

    while waiting or open_:
        if n := min(in_flight - len(open_), len(waiting)):
            slots = [s for s in range(in_flight) if s not in open_][:n]
            new = [_Search(waiting.popleft(), slot) for slot in slots]
            logits = decoder.read([s.prompt for s in new], torch.tensor(slots), observer)
            for search, node in zip(new, _nodes(whole(logits), settings, floor, [((), -1, 0.0)] * n, new), strict=True):
                search.push(node, 0)
                open_[search.slot] = search
        chosen: list[tuple[_Search, _Node, int]] = []
        for search in list(open_.values()):
            followed = _follow(search, settings, stop_rule, limits)
            if followed:
                chosen += [(search, node, child) for node, child in followed]
                continue
            free += search.rows
            del open_[search.slot]
            on_answered(1)
            yield search.result()
        if not chosen:
            continue
        rows = [free.pop() if free else (top := top + 1) - 1 for _ in chosen]
        parents = [node.row for _, node, _ in chosen]
        lengths = [len(node.ids) for _, node, _ in chosen]
        moved = [i for i, parent in enumerate(parents) if parent >= 0]
        targets, sources = (torch.tensor([a[i] for i in moved], dtype=torch.long) for a in (rows, parents))
        decoder.move(top, max(lengths), targets, sources)
        tokens = [int(node.tokens[child]) for _, node, child in chosen]
        slots = torch.tensor([search.slot for search, _, _ in chosen])
        logits = decoder.extend(torch.tensor(tokens), slots, torch.tensor(lengths), torch.tensor(rows))
        at = [
            ((*node.ids, token), row, float(node.logprobs[child]))
            for (_, node, child), token, row in zip(chosen, tokens, rows, strict=True)
        ]
        nodes = _nodes(whole(logits), settings, floor, at, [search for search, _, _ in chosen])
        for (search, _, _), node, row in zip(chosen, nodes, rows, strict=True):
            search.decoded += 1
            search.rows.append(row)
            search.push(node, 0)


def _follow(search: _Search, settings: Sampling, stop_rule: StopRule, limits: SearchLimits) -> list[tuple[_Node, int]]:
    """Take from the frontier what to decode next, and record finished answers; empty when the search is over."""
    followed: list[tuple[_Node, int]] = []
    while search.frontier and len(followed) < _AT_ONCE and 1 - search.explored >= limits.epsilon:
        _, _, node, child = search.frontier[0]
        token = int(node.tokens[child])
        ids = (*node.ids, token)
        stopped = bool(stop_rule.finished(torch.tensor([token]), [ids])[0])
        if not stopped and len(ids) < settings.max_new_tokens and search.decoded + len(followed) >= limits.row_budget:
            break
        heapq.heappop(search.frontier)
        search.push(node, child + 1)
        if stopped or len(ids) == settings.max_new_tokens:
            logprob = float(node.logprobs[child])
            search.outcomes.append(Outcome(ids, logprob, STOP if stopped else LENGTH))
            search.explored += float(np.exp(logprob))
        else:
            followed.append((node, child))
    return followed


def _nodes(
    logits: torch.Tensor,
    settings: Sampling,
    floor: float,
    at: Sequence[tuple[tuple[int, ...], int, float]],
    searches: Sequence[_Search],
) -> list[_Node]:
    """The nodes of [row, vocab] logits; `at` holds (ids, row, log-probability) of each prefix."""
    probabilities = token_probabilities(logits, settings)
    if not probabilities.isfinite().all():
        bad = int((~probabilities.isfinite()).any(-1).nonzero()[0])
        refuse(searches[bad].prompt.key, len(at[bad][0]))
    logprobs, tokens = probabilities.log().sort(-1, descending=True)
    logprobs, tokens = logprobs.double().cpu().numpy(), tokens.cpu().numpy()
    nodes = []
    for (ids, row, before), likeliest, own in zip(at, tokens, logprobs, strict=True):
        keep = int(np.searchsorted(-(own + before), -floor, side="right"))
        nodes.append(_Node(ids, row, likeliest[:keep].astype(np.int32), own[:keep] + before))
    return nodes
