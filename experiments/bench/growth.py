"""How the cost of sampling grows with M and with the length of the prompt, as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice

from matplotlib.figure import Figure

from experiments.bench.sampler_cases import THEIRS_QUESTIONS, generate, ours
from experiments.bench.subjects import M, Subject, subjects
from experiments.bench.timing import Case, side_by_side
from semcal.sampling.records import Prompt

SAMPLES = (5, 10, 20, 50, 100, 200)
LENGTHS = (50, 100, 200, 400, 800)
QUESTIONS = 8


def growth_cases(device: str = "auto") -> Iterator[Case]:
    """Cases `m/5` ... on the 100-token prompts and `prompt/50` ... at M = 50, per run of 8 questions."""
    short, long = [s for s in subjects(device) if s.name in ("organism/concise-800", "organism/concise-100")][::-1]
    short = replace(short, prompts=short.prompts[:QUESTIONS])
    for m in SAMPLES:
        yield _case(f"m/{m}", short, m)
    for length in LENGTHS:
        prompts = tuple(Prompt(p.key, p.ids[:1] + p.ids[-(length - 1) :]) for p in long.prompts[:QUESTIONS])
        yield _case(f"prompt/{length}", replace(long, prompts=prompts), M)


def _case(name: str, subject: Subject, m: int) -> Case:
    sampler, turns = ours(subject, m), cycle(subject.prompts)
    list(sampler.sample(subject.prompts))  # warm up
    return side_by_side(
        name,
        lambda: list(sampler.sample(subject.prompts)),
        lambda: [generate(subject, p, m) for p in islice(turns, THEIRS_QUESTIONS)],
        scale=len(subject.prompts) / THEIRS_QUESTIONS,
    )


def draw(cases: list[Case]) -> Figure:
    """Two panels: time against M and against prompt length, both relative to ours at the smallest."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind, label in zip(
        figure.subplots(1, 2, sharey=True), ("m", "prompt"), ("samples per question M", "prompt tokens"), strict=True
    ):
        these = [c for c in cases if c.case.startswith(f"{kind}/")]
        at = [int(c.case.split("/")[1]) for c in these]
        unit = these[0].ours_s
        axes.plot(at, [c.theirs_s / unit for c in these], "s--", color="#D55E00", label="generate")
        axes.plot(at, [c.ours_s / unit for c in these], "o-", color="#0072B2", label="semcal")
        axes.set(xscale="log", yscale="log", xlabel=label, xticks=at, xticklabels=at)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"time, semcal at {figure.axes[0].get_xlabel().split()[-1]} = {SAMPLES[0]} being 1")
    figure.axes[1].legend(frameon=False)
    return figure
