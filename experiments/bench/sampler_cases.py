"""The sampler against `model.generate(num_return_sequences=50)`, and against a loop of single-return calls.

Subjects: the bundled organism, whose answers are as peaked as those of trained models, and an untrained model of 5 M
parameters, the worst case, in which no two samples agree.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.atlas.weights import bundled
from experiments.bench.timing import REPEATS, Case, seconds, side_by_side
from experiments.config.study import AtlasConfig, PromptingConfig, load_dataset
from probes.activations.capture import ResidualCapture
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import STOPS, few_shot
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling

M = 50
# What takes one question at a time is timed on a few, the next few in each repeat, and scaled to all.
THEIRS_QUESTIONS, LOOP_QUESTIONS, CHECK_QUESTIONS = 4, 1, 16
SAMPLES, LENGTHS, GROWTH_QUESTIONS = (5, 10, 20, 50, 100, 200), (50, 100, 200, 400, 800), 8


@dataclass(frozen=True)
class Subject:
    """A model, prompts, the maximum number of new tokens, and stop strings.

    Each stop string is one token of the model, so that `generate` can stop there by its id.
    """

    name: str
    model: LanguageModel
    prompts: tuple[Prompt, ...]
    new_tokens: int
    stop: tuple[str, ...]

    @cached_property
    def ending_tokens(self) -> tuple[int, ...]:
        """The tokens whose text contains a stop string."""
        texts = [self.model.decode([i]) for i in range(self.model.output_size)] if self.stop else []
        return tuple(i for i, text in enumerate(texts) if any(s in text for s in self.stop))


def subjects(device: str = "auto", seed: int = 0) -> list[Subject]:
    """Every case, in bf16 on a GPU and in fp32 elsewhere."""
    dtype = "bfloat16" if torch.cuda.is_available() and device != "cpu" else "float32"
    organism = LanguageModel.load(bundled("base"), dtype=dtype, device=device)
    random = random_llama(dtype, device, seed)
    return [
        _organism("organism/concise-800", organism, "facts", "concise", 800, 128, 12),
        _organism("organism/concise-100", organism, "facts", "concise", 100, 128, 12),
        _organism("organism/cot-60", organism, "routes", "cot", 100, 128, 60),
        _random("random/concise-800", random, 800, 16, 12, seed),
        _random("random/concise-100", random, 100, 16, 12, seed),
        _random("random/cot-60", random, 100, 16, 60, seed),
    ]


def _organism(
    name: str, model: LanguageModel, family: str, style: str, prompt_tokens: int, n: int, new_tokens: int
) -> Subject:
    dataset = load_dataset(AtlasConfig(kind="atlas", family=family, n=n), PromptingConfig(exemplars=64))  # pyright: ignore[reportArgumentType]

    def prompts(shots: int) -> tuple[Prompt, ...]:
        texts = [few_shot(q, dataset.exemplars, style, shots, 0, vary="run") for q in dataset.questions]
        return tuple(Prompt(q.id, model.encode(t)) for q, t in zip(dataset.questions, texts, strict=True))

    shots = next(s for s in range(1, 65) if len(prompts(s)[0].ids) >= prompt_tokens)
    stop = STOPS[style] if style == "concise" else ("\n",)  # a chain of thought of atlas is one line
    return Subject(name, model, prompts(shots), new_tokens, stop)


def _random(name: str, model: LanguageModel, prompt_tokens: int, n: int, new_tokens: int, seed: int) -> Subject:
    """Prompts that share all but their last 20 tokens, as few-shot prompts do."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, model.output_size, prompt_tokens - 20).tolist()
    tails = rng.integers(3, model.output_size, (n, 20)).tolist()
    prompts = tuple(Prompt(f"{name}-{i}", (*shared, *tail)) for i, tail in enumerate(tails))
    return Subject(name, model, prompts, new_tokens, ())


def random_llama(dtype: str, device: str, seed: int) -> LanguageModel:
    """An untrained Llama of 5 M parameters with the organism's tokenizer; it never ends an answer on its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=704,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        for file in Path(bundled("base")).glob("tokenizer*"):
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        return LanguageModel.load(folder, dtype=dtype, device=device)


def sampler_cases(device: str = "auto") -> Iterator[Case]:
    """Ours against `generate`; the facts are the ratio to the loop, rows and bytes."""
    for subject in subjects(device):
        sampler = ours(subject)
        check(subject, sampler)
        loop = seconds(lambda s=subject: [generate(s, p, 1) for p in s.prompts[:LOOP_QUESTIONS] for _ in range(M)])
        before = sampler.work.rows_decoded, sampler.work.rows_plain
        case = _against_generate(subject.name, subject, sampler, M)
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
        yield replace(case, facts=facts)


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
    return Sampler(subject.model.model, settings, subject.model.stop_rule(subject.stop), device=subject.model.device)


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
    prompts = subject.prompts[:CHECK_QUESTIONS]
    for answered in sampler.sample(prompts):
        for s in answered.samples:
            drawn[s.ids[0] % 64] += s.count
    torch.manual_seed(0)
    for prompt in prompts:
        theirs.update(t % 64 for t in generate(subject, prompt, M)[:, 0].tolist())
    p = homogeneity(drawn, theirs)
    assert p > 1e-4, f"{subject.name}: the two samplers draw from different distributions (p = {p:.1e})"


def homogeneity(one: Counter[Any], other: Counter[Any]) -> float:
    """p-value of the chi-square test that two samples of anything come from one distribution. What was seen fewer than
    20 times in both together is pooled."""
    frequent = [k for k in sorted({*one, *other}) if one[k] + other[k] >= 20]
    table = [[found[k] for k in frequent] for found in (one, other)]
    rest = [max(1, found.total() - sum(row)) for found, row in zip((one, other), table, strict=True)]
    table = [[*row, r] for row, r in zip(table, rest, strict=True)]
    return float(stats.chi2_contingency(table)[1])  # pyright: ignore[reportArgumentType]


def growth_cases(device: str = "auto") -> Iterator[Case]:
    """Cases `m/5` ... on the 100-token prompts and `prompt/50` ... at M = 50, per run of 8 questions."""
    short, long = [s for s in subjects(device) if s.name in ("organism/concise-800", "organism/concise-100")][::-1]
    short = replace(short, prompts=short.prompts[:GROWTH_QUESTIONS])
    for m in SAMPLES:
        yield _growth_case(f"m/{m}", short, m)
    for length in LENGTHS:
        prompts = tuple(Prompt(p.key, p.ids[:1] + p.ids[-(length - 1) :]) for p in long.prompts[:GROWTH_QUESTIONS])
        yield _growth_case(f"prompt/{length}", replace(long, prompts=prompts), M)


def _growth_case(name: str, subject: Subject, m: int) -> Case:
    sampler = ours(subject, m)
    list(sampler.sample(subject.prompts))  # warm up
    return _against_generate(name, subject, sampler, m)


def _against_generate(name: str, subject: Subject, sampler: Sampler, m: int) -> Case:
    turns = cycle(subject.prompts)
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
