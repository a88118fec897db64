"""The sampler on two real language models against `model.generate(num_return_sequences=50)` and against vLLM.

TriviaQA, five exemplars that vary by question, M = 50, temperature 1. All three read the same token ids, stop at the
same tokens and have every core; vLLM runs in an environment of its own, with n = 50 and prefix caching, on the same
weights in the same dtype. Their answers are compared before a figure is given.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, groupby, islice
from pathlib import Path

import torch

from experiments.bench.real.matrix_throughput import matrix_throughput, token_flops
from experiments.bench.real.vllm_process import Vllm
from experiments.bench.sampler_cases import M, Subject, generate, homogeneity, ours
from experiments.bench.timing import Case, Skipped, Spent, spent
from experiments.config.study import NamedConfig, PromptingConfig, load_dataset
from experiments.sample.real_models import real_model
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import STOPS, few_shot
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Answered, Prompt
from semcal.sampling.vllm.interpreter import vllm_python

CASES = (
    ("real/gemma-concise", "gemma-3-270m", "concise"),
    ("real/gemma-sentence", "gemma-3-270m", "sentence"),
    ("real/smollm2-concise", "smollm2-135m-instruct", "concise"),
)
SHOTS, REPEATS = 5, 3
NEW_TOKENS = {"concise": 32, "sentence": 64}
# Questions in one repeat. On a CPU, the samples of five are the 250 rows that vLLM decodes at once by default.
QUESTIONS = {
    "cpu": {"ours": 24, "generate": 1, "vllm": 5},
    "cuda": {"ours": 512, "generate": 8, "vllm": 512},
}
ROWS = 768  # tokens in one pass when the throughput is measured, as many as the sampler decodes on a CPU
LEAST_P = 1e-4

Answers = dict[str, Counter[tuple[int, ...]]]  # of each question: how often each answer was drawn


@dataclass(frozen=True)
class RealCase(Case):
    """A comparison on a real model; `ours_s`, `theirs_s` (of `generate`) and `ratio` are wall-clock times."""

    @property
    def line(self) -> str:
        f = self.facts
        said = f"{self.case}: generate {self.ratio:.3g}× (CPU {f['cpu_ratio']:.3g}×)"
        if f["vllm_ratio"] is not None:
            said += f", vLLM {f['vllm_ratio']:.3g}× (CPU {f['vllm_cpu_ratio']:.3g}×)"
        return f"{said}; {f['share']:.0%} of {f['gflops']:.0f} GFLOP/s (CPU {f['cpu_share']:.0%})"


@dataclass
class Side:
    """One way to sample, what it took for a question in each repeat, and what it drew.

    Attributes:
        answers: Samples the answers to some prompts.
        at_once: Number of prompts that it is given at once.
        cpu_seconds: CPU time so far of the process that does the work.
    """

    answers: Callable[[Sequence[Prompt]], Answers]
    at_once: int
    cpu_seconds: Callable[[], float] = time.process_time
    spent: list[Spent] = field(default_factory=list)
    drawn: Answers = field(default_factory=dict)

    def turn(self, prompts: Sequence[Prompt], repeat: int) -> None:
        """Answer the next few prompts."""
        first = repeat * self.at_once
        these = list(islice(cycle(prompts), first, first + self.at_once))
        taken = spent(lambda: self.drawn.update(self.answers(these)), self.cpu_seconds)
        self.spent.append(Spent(taken.wall_s / self.at_once, taken.cpu_s / self.at_once))

    @property
    def wall_s(self) -> float:
        return statistics.median(s.wall_s for s in self.spent)

    @property
    def cpu_s(self) -> float:
        return statistics.median(s.cpu_s for s in self.spent)

    def against(self, ours: Side) -> dict[str, float]:
        """How many times as long as ours this took (medians over repeats, and the range), and whether answers agree."""
        pairs = list(zip(self.spent, ours.spent, strict=True))
        ratios = sorted(theirs.wall_s / mine.wall_s for theirs, mine in pairs)
        return {
            "cpu_s": self.cpu_s,
            "ratio": statistics.median(ratios),
            "least": ratios[0],
            "most": ratios[-1],
            "cpu_ratio": statistics.median(theirs.cpu_s / mine.cpu_s for theirs, mine in pairs),
            "answers_p": agreement(ours.drawn, self.drawn),
        }


def real_cases(device: str = "auto") -> Iterator[Case | Skipped]:
    """Every case whose model is here, in bf16 on a GPU and in fp32 elsewhere; with vLLM where it is."""
    try:
        python = vllm_python()
    except UserError as error:
        python = None
        yield Skipped("real/* against vLLM", str(error))
    for name, cases in groupby(CASES, key=lambda case: case[1]):
        yield from _of_model(name, [(case, style) for case, _, style in cases], python, device)


def _of_model(
    name: str, cases: Sequence[tuple[str, str]], python: Path | None, device: str
) -> Iterator[Case | Skipped]:
    dtype = "bfloat16" if torch.cuda.is_available() and device != "cpu" else "float32"
    threads, vllm = torch.get_num_threads(), None
    torch.set_num_threads(cores())
    left = [case for case, _ in cases]
    try:
        model = LanguageModel.load(real_model(name), dtype=dtype, device=device)
        subjects = [real_subject(case, model, style) for case, style in cases]
        if python:
            vllm = start_vllm(python, model)
        for subject in subjects:
            yield compare(subject, vllm)
            left.remove(subject.name)
    except UserError as error:
        yield Skipped(", ".join(left), str(error))
    finally:
        torch.set_num_threads(threads)
        if vllm:
            vllm.close()


def real_subject(case: str, model: LanguageModel, style: str) -> Subject:
    """Questions of TriviaQA, asked as a base model is asked; the tuned model gets exemplars, too.

    Raises:
        UserError: TriviaQA is not to be had.
    """
    dataset = load_dataset(NamedConfig(kind="triviaqa", n=_questions(model)["ours"]), PromptingConfig())
    texts = {q.id: few_shot(q, dataset.exemplars, style, SHOTS, 0) for q in dataset.questions}
    prompts = tuple(Prompt(key, model.encode(text)) for key, text in texts.items())
    return Subject(case, model, prompts, NEW_TOKENS[style], STOPS[style])


def start_vllm(python: Path, model: LanguageModel) -> Vllm:
    """vLLM with the weights of a model, which it reads from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        dtype = str(model.dtype).removeprefix("torch.")
        return Vllm(python, Path(folder), dtype, device=model.device.type, threads=cores())


def _questions(model: LanguageModel) -> dict[str, int]:
    return QUESTIONS["cuda" if model.device.type == "cuda" else "cpu"]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare(subject: Subject, vllm: Vllm | None) -> RealCase:
    """All sides in turns, each on as many questions as suit it; times are medians of the repeats.

    Raises:
        AssertionError: their answers come from different distributions.
    """
    sampler, at_once = ours(subject), _questions(subject.model)
    mine = Side(lambda prompts: drawn_by(sampler, prompts), len(subject.prompts))
    theirs = {"generate": Side(lambda prompts: generated(subject, prompts), at_once["generate"])}
    if vllm:
        theirs["vllm"] = Side(lambda prompts: asked_vllm(vllm, subject, prompts), at_once["vllm"], vllm.cpu_seconds)
    for side in (mine, *theirs.values()):
        side.answers(subject.prompts[-2:])  # warm up
    work = sampler.work
    before = work.rows_decoded, work.rows_plain, work.prompt_tokens
    for repeat in range(REPEATS):
        for side in (mine, *theirs.values()):
            side.turn(subject.prompts, repeat)
    after = work.rows_decoded, work.rows_plain, work.prompt_tokens
    rows, plain, read = ((b - a) // REPEATS for a, b in zip(before, after, strict=True))

    found = {name: side.against(mine) for name, side in theirs.items()}
    for name, figures in found.items():
        p = figures["answers_p"]
        assert p > LEAST_P, f"{subject.name}: {name} draws from a different distribution (p = {p:.1e})"
    n = len(subject.prompts)
    generate, other = found["generate"], found.get("vllm")
    layers, head = token_flops(subject.model.model)
    flops = layers * (read + rows) + head * (n + rows)
    machine = matrix_throughput(subject.model.model, ROWS)
    facts = {
        "questions": n,
        "prompt_tokens": round(statistics.mean(len(p.ids) for p in subject.prompts)),
        "rows_decoded": rows,
        "rows_plain": plain,
        "range": [generate["least"], generate["most"]],
        "cpu_s": mine.cpu_s * n,
        "cpu_ratio": generate["cpu_ratio"],
        "answers_p": generate["answers_p"],
        "vllm_s": theirs["vllm"].wall_s * n if other else None,
        "vllm_ratio": other and other["ratio"],
        "vllm_range": other and [other["least"], other["most"]],
        "vllm_cpu_ratio": other and other["cpu_ratio"],
        "vllm_answers_p": other and other["answers_p"],
        "gflop": flops / 1e9,
        "gflops": machine.wall / 1e9,
        "share": flops / (mine.wall_s * n) / machine.wall,
        "cpu_share": flops / (mine.cpu_s * n) / machine.cpu,
    }
    return RealCase(subject.name, mine.wall_s * n, theirs["generate"].wall_s * n, generate["ratio"], facts)


def agreement(one: Answers, other: Answers) -> float:
    """The smaller p-value of two tests that both draw from one distribution, on the questions that both answered: the
    first tokens of each question, and the numbers of tokens of all."""
    both = sorted(one.keys() & other.keys())
    firsts, lengths = [Counter[tuple[str, int]](), Counter()], [Counter[int](), Counter()]
    for found, first, length in zip((one, other), firsts, lengths, strict=True):
        for key in both:
            for ids, count in found[key].items():
                first[key, ids[0]] += count
                length[len(ids)] += count
    return min(homogeneity(*firsts), homogeneity(*lengths))


def drawn_by(sampler: Sampler, prompts: Sequence[Prompt]) -> Answers:
    return counted(sampler.sample(prompts))


def counted(found: Iterable[Answered]) -> Answers:
    """How often each answer was drawn."""
    return {a.key: Counter({s.ids: s.count for s in a.samples}) for a in found}


def generated(subject: Subject, prompts: Sequence[Prompt]) -> Answers:
    ends = frozenset(ends_of(subject))
    return {p.key: Counter(_ended(ids, ends) for ids in generate(subject, p, M).tolist()) for p in prompts}


def _ended(ids: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """Up to the token that ended it, inclusive; `generate` pads behind it."""
    return tuple(ids[: next((at + 1 for at, i in enumerate(ids) if i in ends), len(ids))])


def asked_vllm(vllm: Vllm, subject: Subject, prompts: Sequence[Prompt]) -> Answers:
    found = vllm.ask([p.ids for p in prompts], M, subject.new_tokens, ends_of(subject))
    return {p.key: Counter(tuple(ids) for ids in answers) for p, answers in zip(prompts, found, strict=True)}


def ends_of(subject: Subject) -> tuple[int, ...]:
    """The tokens that end an answer; `generate` is given the same."""
    return (*subject.model.eos_ids, *subject.ending_tokens)
