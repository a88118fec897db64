"""A low-rank adapter trained on gold answers by a proper loss, on some of a run's questions.

The theory behind it (arXiv 2511.04869): a proper loss brings back what preference tuning took away, if the model can
predict its own class distribution before it answers, and not where it cannot. Knows prompts and gold as token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.evaluation.folds import inner_split
from probes.rungs.emitting.adapter_training import AdapterTraining, Asked, Schedule
from probes.rungs.emitting.emitter import Emitter
from probes.rungs.emitting.generated_text import likeliest_end
from probes.rungs.lora import adapter_rate, write_adapter
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import Form
from semcal.seeds import keyed_generator

RANK, EPOCHS, COOLING, BATCH, PARTS = 8, 8, 2, 8, 5  # one part of PARTS is validated on


@dataclass(frozen=True)
class Gold:
    """A question to learn from.

    Attributes:
        group: questions of one group are learnt from or validated on together.
        prompt: token ids.
        answer: token ids of the gold answer, as the model would write it after the prompt, without its end.
    """

    group: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Learnt:
    """How a training went.

    Attributes:
        questions, validated: their numbers.
        rate: learning rate, chosen by the validation questions after one epoch.
        epoch: the one that did best on them; 0: the adapter does nothing.
        training: [epoch] mean nats of a gold answer.
        validation: [epoch + 1] likewise, the first one before training.
    """

    questions: int
    validated: int
    rate: float
    epoch: int
    training: tuple[float, ...]
    validation: tuple[float, ...]


def train_on_gold(
    model: LanguageModel,
    gold: Sequence[Gold],
    form: Form,
    into: Path,
    *,
    name: str,
    seed: int,
    told: Callable[[str], None] = lambda _: None,
) -> Learnt:
    """Train an adapter by cross-entropy on gold answers, and write it to a folder as peft does.

    Training goes on until two epochs are no better on the validation questions; then the rate falls to 0 from the best.
    What a stopped call leaves beside `into` is gone on from, with the same result.

    Args:
        model: it is left as it is.
        gold: at least two groups.
        form: of the prompts.
        name: of the training, for messages and seeds.
        told: hears of every step and validation, in words: "step 3 of 72 at most, ...".

    Raises:
        UserError: as `probes.rungs.lora.adapted`.
        NonFiniteError: a loss that is not finite.
    """
    fit, validation = inner_split([one.group for one in gold], PARTS, seed=seed)
    end = likeliest_end(model, {one.answer for one in gold}, form)
    emitter = Emitter(model, RANK, end, seed=int(keyed_generator(seed, "adapters").integers(2**62)))
    longest = max(gold, key=lambda one: len(one.prompt) + len(one.answer))
    emitter.check(longest.prompt, [longest.answer])
    learnt, validated = ([_asked(gold[i]) for i in rows] for rows in (fit, validation))
    steps = -(-len(learnt) // BATCH)
    trainings: list[AdapterTraining] = []

    def tell(what: str) -> None:  # all epochs of one rate, and one of the other
        told(f"step {sum(one.step for one in trainings):,} of {(1 + EPOCHS + COOLING) * steps:,} at most, {what}")

    def training(rate: float) -> AdapterTraining:
        def step(loss: float) -> None:
            validating = ", validating" if one.step % steps == 0 else ""
            tell(f"epoch {one.round + 1} at rate {rate:.2g}, loss {loss:.2f}{validating}")

        schedule = Schedule(rate, EPOCHS, COOLING, steps, 1, BATCH, seed)
        file = into.parent / f".{into.name}-{rate:.3g}.safetensors"
        one = AdapterTraining(emitter, name, learnt, validated, schedule, file, step)
        return one

    trainings += [training(rate) for rate in (adapter_rate(model), adapter_rate(model) / 3)]
    for one in trainings:
        if not one.validation:
            tell(f"validating before the first at rate {one.schedule.rate:.2g}")
        one.until(1)
    best = min(trainings, key=lambda one: one.validation[1])
    best.finish()
    into.mkdir(parents=True, exist_ok=True)
    write_adapter(model, best.best_adapters, into)
    for one in trainings:
        one.file.unlink(missing_ok=True)
    losses = tuple(best.training), tuple(best.validation)
    return Learnt(len(learnt), len(validated), best.schedule.rate, best.best, *losses)


def _asked(gold: Gold) -> Asked:
    return Asked(gold.prompt, [gold.answer], np.ones(1))
