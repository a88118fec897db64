"""The engines that can sample a study, on the same prompts of the same model: semcal's sampler and vLLM, with and
without capture; beside them plain vLLM and `model.generate`, which a user would otherwise run.

Gemma 3 270M on TriviaQA where it is here (`python -m experiments.sample.real_models`), else an untrained model of 5 M
parameters. CPU seconds count all processes of a side; on a shared machine they depend less on what else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiments.bench.real.real_cases import (
    LEAST_P,
    REPEATS,
    Answers,
    Side,
    agreement,
    asked_vllm,
    cores,
    counted,
    drawn_by,
    generated,
    real_subject,
    start_vllm,
)
from experiments.bench.sampler_cases import M, Subject, ours, subjects
from experiments.bench.timing import Case, Skipped
from experiments.sample.real_models import real_model
from probes.activations.capture import ResidualCapture
from probes.activations.engine_capture import EngineCapture
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import DEFAULT_HOOKS
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.vllm.interpreter import vllm_python
from semcal.sampling.vllm.vllm_engine import VllmEngine, VllmModel

# Questions in one repeat.
AT_ONCE = {"semcal": 3, "semcal + capture": 3, "vllm": 3, "vllm + capture": 3, "plain vllm": 3, "generate": 1}
# (ours, theirs) of each case
PAIRS = (
    ("vllm + capture", "vllm"),
    ("vllm + capture", "plain vllm"),
    ("semcal + capture", "vllm + capture"),
    ("semcal", "plain vllm"),
    ("semcal", "generate"),
)


def engine_cases(device: str = "auto") -> Iterator[Case | Skipped]:
    """All pairs on the real model where it is here, else on a random one; see the head of this file."""
    try:
        python = vllm_python()
    except UserError as error:
        yield Skipped("engines", str(error))
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        subject = _subject(device)
        with TemporaryDirectory(prefix="semcal-engines-") as folder:
            subject.model.model.save_pretrained(folder)
            subject.model.tokenizer.save_pretrained(folder)
            yield from _compared(subject, python, Path(folder))
    except UserError as error:
        yield Skipped("engines", str(error))
    finally:
        torch.set_num_threads(threads)


def _subject(device: str) -> Subject:
    dtype = "bfloat16" if torch.cuda.is_available() and device != "cpu" else "float32"
    try:
        model = LanguageModel.load(real_model("gemma-3-270m"), dtype=dtype, device=device)
        return real_subject("gemma-concise", model, "concise")
    except UserError:
        return next(s for s in subjects(device) if s.name == "random/concise-100")


def _compared(subject: Subject, python: Path, folder: Path) -> Iterator[Case]:
    """
    Raises:
        AssertionError: two sides draw from different distributions, or something was not captured.
    """
    model = subject.model
    settings = Sampling(m=M, max_new_tokens=subject.new_tokens, stop=subject.stop)
    layers = [hook.name for hook in choose_hooks(model.model, DEFAULT_HOOKS)]
    dtype, rule = str(model.dtype).removeprefix("torch."), model.stop_rule(subject.stop)
    engine = VllmEngine(python, VllmModel(str(folder), dtype=dtype, device=model.device.type))
    plain = start_vllm(python, model)
    alone, watched = ours(subject), ours(subject)

    def in_vllm(prompts: Sequence[Prompt], *, capturing: bool) -> Answers:
        where = {p.key: {"last_prompt_token": [len(p.ids) - 1]} for p in prompts}
        capture = EngineCapture(layers, where) if capturing else None
        engine.forget()
        answers = counted(engine.sample(prompts, settings, rule, capture))
        assert capture is None or len(capture.take(list(answers), "last_prompt_token").values) == len(prompts)
        return answers

    def seen_here(prompts: Sequence[Prompt]) -> Answers:
        capture = ResidualCapture()
        answers = counted(watched.sample(prompts, capture))
        assert len(capture.take().values) == len(prompts)
        return answers

    answered: dict[str, tuple[Callable[[Sequence[Prompt]], Answers], Callable[[], float]]] = {
        "semcal": (lambda prompts: drawn_by(alone, prompts), time.process_time),
        "semcal + capture": (seen_here, time.process_time),
        "vllm": (lambda prompts: in_vllm(prompts, capturing=False), lambda: engine.cpu_seconds() + time.process_time()),
        "vllm + capture": (
            lambda prompts: in_vllm(prompts, capturing=True),
            lambda: engine.cpu_seconds() + time.process_time(),
        ),
        "plain vllm": (lambda prompts: asked_vllm(plain, subject, prompts), plain.cpu_seconds),
        "generate": (lambda prompts: generated(subject, prompts), time.process_time),
    }
    sides = {name: Side(answers, AT_ONCE[name], cpu) for name, (answers, cpu) in answered.items()}
    try:
        engine.fit(max(len(p.ids) for p in subject.prompts) + subject.new_tokens)
        for side in sides.values():
            side.answers(subject.prompts[-2:])  # warm up
        for repeat in range(REPEATS):
            for side in sides.values():
                side.turn(subject.prompts, repeat)
    finally:
        engine.close()
        plain.close()
    for one, other in PAIRS:
        mine, theirs = sides[one], sides[other]
        figures = theirs.against(mine)
        assert agreement(mine.drawn, theirs.drawn) > LEAST_P, f"{one} and {other} draw from different distributions"
        facts = {"ours": one, "theirs": other, "cpu_ours_s": mine.cpu_s, "cpu_theirs_s": theirs.cpu_s}
        facts |= {key: figures[key] for key in ("least", "most", "cpu_ratio", "answers_p")}
        name = f"{subject.name}: {one} / {other}"
        yield Case(name, mine.wall_s, theirs.wall_s, figures["ratio"], facts)
