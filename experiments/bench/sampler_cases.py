"""The sampler against `model.generate(num_return_sequences=50)`, and against a loop of single-return calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice

import torch
from scipy import stats

from experiments.bench.subjects import M, Subject, subjects
from experiments.bench.timing import REPEATS, Case, seconds, side_by_side
from probes.activations.capture import ResidualCapture
from semcal.answers import stop_rule
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling

# What takes one question at a time is timed on a few, the next few in each repeat, and scaled to all.
THEIRS_QUESTIONS, LOOP_QUESTIONS, CHECK_QUESTIONS = 4, 1, 16


def sampler_cases(device: str = "auto") -> Iterator[Case]:
    """Ours against `generate`; the facts hold the ratio to the loop, rows and bytes."""
    for subject in subjects(device):
        sampler = ours(subject)
        check(subject, sampler)
        loop = seconds(lambda s=subject: [generate(s, p, 1) for p in s.prompts[:LOOP_QUESTIONS] for _ in range(M)])
        before = sampler.work.rows_decoded, sampler.work.rows_plain
        turns, scale = cycle(subject.prompts), len(subject.prompts) / THEIRS_QUESTIONS
        case = side_by_side(
            subject.name,
            lambda s=subject, a=sampler: list(a.sample(s.prompts)),
            lambda s=subject, t=turns: [generate(s, p, M) for p in islice(t, THEIRS_QUESTIONS)],
            scale=scale,
        )
        facts = {
            "questions": len(subject.prompts),
            "theirs_questions": THEIRS_QUESTIONS * REPEATS,
            "prompt_tokens": len(subject.prompts[0].ids),
            "loop_ratio": loop / LOOP_QUESTIONS * len(subject.prompts) / case.ours_s,
            "rows_decoded": (sampler.work.rows_decoded - before[0]) // REPEATS,
            "rows_plain": (sampler.work.rows_plain - before[1]) // REPEATS,
            "kv_bytes": sampler.work.peak_kv_bytes,
            "path": sampler.work.path,
        }
        yield Case(case.case, case.ours_s, case.theirs_s, case.ratio, facts)


def capture_cases(device: str = "auto") -> Iterator[Case]:
    """Sampling with capture (ours) against sampling alone (theirs): the ratio should be at least 0.95."""
    for subject in subjects(device)[:3]:
        sampler, watched = ours(subject), ours(subject)
        alone = list(sampler.sample(subject.prompts))
        seen = ResidualCapture()
        assert sorted(a.key for a in watched.sample(subject.prompts, seen)) == sorted(a.key for a in alone)
        assert set(seen.take().keys) == {p.key for p in subject.prompts}
        yield side_by_side(
            subject.name,
            lambda s=subject, a=watched: list(a.sample(s.prompts, ResidualCapture())),
            lambda s=subject, a=sampler: list(a.sample(s.prompts)),
            repeats=21,
        )


def ours(subject: Subject, m: int = M) -> Sampler:
    settings = Sampling(m=m, max_new_tokens=subject.new_tokens, stop=subject.stop)
    return Sampler(subject.model.model, settings, stop_rule(subject.model, subject.stop), device=subject.model.device)


@torch.inference_mode()
def generate(subject: Subject, prompt: Prompt, n: int) -> torch.Tensor:
    """What a user would otherwise run: [n, token] new tokens; it stops at the stop string, given as a token id."""
    ids = torch.tensor([prompt.ids], device=subject.model.device)
    out = subject.model.model.generate(  # pyright: ignore[reportCallIssue]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        max_new_tokens=subject.new_tokens,
        pad_token_id=0,
        eos_token_id=[*subject.model.eos_ids, *subject.ending_tokens] or None,
    )
    return out[:, len(prompt.ids) :]


def check(subject: Subject, sampler: Sampler) -> None:
    """Both draw from the same distribution: chi-square test of homogeneity on the first tokens of some questions."""
    drawn, theirs = Counter[int](), Counter[int]()
    asked = subject.prompts[:CHECK_QUESTIONS]
    for answered in sampler.sample(asked):
        for s in answered.samples:
            drawn[s.ids[0] % 64] += s.count
    torch.manual_seed(0)
    for prompt in asked:
        theirs.update(t % 64 for t in generate(subject, prompt, M)[:, 0].tolist())
    kept = [t for t in sorted({*drawn, *theirs}) if drawn[t] + theirs[t] >= 20]
    table = [[found[t] for t in kept] for found in (drawn, theirs)]
    rest = [max(1, found.total() - sum(row)) for found, row in zip((drawn, theirs), table, strict=True)]
    table = [[*row, r] for row, r in zip(table, rest, strict=True)]
    p = float(stats.chi2_contingency(table)[1])  # pyright: ignore[reportArgumentType]
    assert p > 1e-4, f"{subject.name}: the two samplers draw from different laws (p = {p:.1e})"
