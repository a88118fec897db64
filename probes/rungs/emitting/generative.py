"""The probe of the paper: LoRA adapters on the model itself, which reads a prompt and emits the class of its answer at
once, as text and an end mark.

q(c | x) is the probability of that text: a proper distribution over strings, so any class can be predicted, whether a
training question had it or not. Knows prompts and classes as token ids (`probes.rungs.emitting.generated_text` makes
them), and class distributions; nothing of runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from probes.evaluation.folds import Fold, nested_folds, too_few_groups
from probes.evaluation.learning import shuffled_groups
from probes.evaluation.result import Seeds
from probes.rungs.emitting.adapter_training import AdapterTraining, Asked, Schedule
from probes.rungs.emitting.emitter import Emitter
from probes.rungs.emitting.generated_text import ClassTexts
from probes.rungs.lora import adapter_rate
from probes.targets.open import OpenTarget
from semcal.arrays import FloatArray, IntArray
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.runs.files import content_key, write_atomically
from semcal.seeds import keyed_generator

Ids = Sequence[int]


@dataclass(frozen=True)
class Training:
    """How adapters are trained.

    Attributes:
        rank: of the adapters.
        rates: learning rates; each is tried for an epoch, and the best by validation goes on. None: `adapter_rate`
            and a third of it.
        epochs: at the full rate, at most; they end with two in a row that do not lower the validation loss.
        cooling: epochs after these in which the rate falls to 0. The adapters with the lowest validation loss of all
            epochs are kept, which may be those of epoch 0, the model as it is.
        steps: of an epoch, at least: fewer questions are passed several times.
        draws: classes of a question in one pass, drawn from its distribution without regard to chance as far as
            possible (systematic sampling), so that the expected loss is CE(π_x, q); a question with no more classes
            shows them all, weighted. None: 4 to 16, as many as are half as long as the prompt that they are read with.
        batch: questions in a step.
        folds, seed: of the cross-validation, the same as for every other rung; the seed also decides what is drawn.
        curve: shares of the first fold's training groups that the learning curve has, beside 1.
        all_classes: whether held-out questions are scored on all classes of the target, and not on their own alone.
    """

    rank: int = 8
    rates: tuple[float, ...] | None = None
    epochs: int = 12
    cooling: int = 2
    steps: int = 48
    draws: int | None = None
    batch: int = 4
    folds: int = 5
    seed: int = 0
    curve: tuple[float, ...] = (0.25, 0.5)
    all_classes: bool = False


@dataclass(frozen=True)
class Learnt:
    """One training.

    Attributes:
        questions: that were learnt from, validation not included.
        rate: learning rate that was best on the validation questions.
        epoch: whose adapters were kept, those of cooling counted on; 0: the model as it is.
        training, validation: [epoch] nats per question; training begins with the first epoch, validation with epoch 0.
    """

    questions: int
    rate: float
    epoch: int
    training: tuple[float, ...]
    validation: tuple[float, ...]


@dataclass(frozen=True)
class CurvePoint:
    """What is learnt from a part of the first fold's training questions.

    Attributes:
        learnt: by how many questions, and how.
        rows: [question] held-out questions of the first fold.
        cross_entropy: [question] of these, in nats.
    """

    learnt: Learnt
    rows: IntArray
    cross_entropy: FloatArray


@dataclass(frozen=True)
class Generated:
    """Held-out log-probabilities of the generative rung.

    Attributes:
        log_q: [entry] of the target, in nats, by adapters that saw no question of that group.
        learnt: [fold]; none, and no curve, where all answers are in one class: it has probability 1.
        curve: the learning curve, ending with the first fold itself.
        over_classes: [question, class] of the target, where all classes are scored; the rest of the probability is that
            of strings which are none of them.
    """

    log_q: FloatArray
    learnt: tuple[Learnt, ...]
    curve: tuple[CurvePoint, ...]
    over_classes: FloatArray | None = None


@dataclass(frozen=True)
class Progress:
    """Told after every step: what is being done, in words; the loss of the step in nats per question, None while
    scoring; the fraction of all work done, and the seconds left, if every training takes all of its epochs; None before
    anything is known."""

    what: str
    loss: float | None
    fraction: float
    seconds_left: float | None


def generate_classes(
    model: LanguageModel,
    prompts: Sequence[Ids],
    texts: ClassTexts,
    target: OpenTarget,
    group: Sequence[str],
    how: Training = Training(),
    *,
    scratch: Path,
    told: Callable[[Progress], None] = lambda _: None,
) -> Generated:
    """Cross-fit the generative rung.

    >>> texts = class_texts(model, target.classes, form)
    >>> generate_classes(model, prompts, texts, target, group, scratch=folder).log_q

    Args:
        model: whose answers are predicted; it is left as it is.
        prompts: [question] token ids.
        texts: of the classes of the target.
        group: [question].
        scratch: a folder for what a stopped call leaves: the same call goes on from there, with the same result. It is
            removed in the end.
        told: hears of progress.

    Raises:
        UserError: fewer groups than folds, or as `adapted`.
        NonFiniteError: a loss that is not finite; fold, step and learning rate are named.
    """
    if reason := too_few_groups(len(set(group)), how.folds):
        raise UserError(f"LoRA: {reason}")
    if not len(prompts) == len(target) == len(group) or len(texts.ids) != len(target.classes):
        raise ValueError(
            f"{len(prompts)} prompts, {len(group)} groups and {len(texts.ids)} texts for {len(target)} questions and "
            f"{len(target.classes)} classes; expected one of each"
        )
    if target.one_class:
        whole = np.where(np.arange(len(target.classes)) == target.column[0], 0.0, -np.inf)
        everywhere = np.tile(whole, (len(target), 1)) if how.all_classes else None
        return Generated(np.zeros(len(target.mass)), (), (), everywhere)
    if how.rates is None:
        how = replace(how, rates=(adapter_rate(model), adapter_rate(model) / 3))
    settings = [asdict(how), model.weights_hash, str(model.dtype)]
    given = [[*map(list, prompts)], asdict(texts), list(group)]
    key = content_key(settings, given, target.starts.tolist(), target.column.tolist(), target.mass.tolist())
    folder = scratch / key
    found = _CrossFit(model, prompts, texts, target, how, folder, told).run(group)
    shutil.rmtree(folder, ignore_errors=True)
    if scratch.exists() and not any(scratch.iterdir()):
        scratch.rmdir()
    return found


def _asked(prompts: Sequence[Ids], texts: ClassTexts, target: OpenTarget) -> list[Asked]:
    asked = []
    for row, prompt in enumerate(prompts):
        entries = slice(target.starts[row], target.starts[row + 1])
        sequences = [texts.ids[column] for column in target.column[entries]]
        asked.append(Asked(tuple(prompt), sequences, target.mass[entries]))
    return asked


def _as_long_as_half_a_prompt(asked: Sequence[Asked]) -> int:
    prompt = np.mean([len(one.prompt) for one in asked])
    drawn = np.mean([one.shares @ [len(sequence) + 1 for sequence in one.sequences] for one in asked])
    return int(np.clip(prompt / (2 * drawn), 4, 16))


class _CrossFit:
    """The folds and the learning curve, one training after the other, and how much of the work is done."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Ids],
        texts: ClassTexts,
        target: OpenTarget,
        how: Training,
        folder: Path,
        told: Callable[[Progress], None],
    ) -> None:
        self.asked, self.target = _asked(prompts, texts, target), target
        self.scored = [texts.ids if how.all_classes else question.sequences for question in self.asked]
        self.how, self.folder, self.told = how, folder, told
        self.draws = how.draws or _as_long_as_half_a_prompt(self.asked)
        seed = int(keyed_generator(how.seed, "adapters").integers(2**62))
        self.emitter = Emitter(model, how.rank, texts.end, seed=seed)
        longest = max(self.asked, key=lambda question: len(question.prompt) + max(map(len, question.sequences)))
        self.emitter.check(longest.prompt, sorted(longest.sequences, key=len)[-4:])
        self.done = self.planned = self.worked = 0.0
        self.began = time.monotonic()

    def run(self, group: Sequence[str]) -> Generated:
        how, target = self.how, self.target
        folds = nested_folds(group, how.folds, Seeds.of(how.seed).folds)
        shares = [share for share in sorted(how.curve) if share < 1]
        rounds = [len(how.rates or ()) + how.epochs - 1] * len(folds) + [how.epochs] * len(shares)
        self.planned = sum(
            self._cost(fold, n) for fold, n in zip([*folds, *folds[:1] * len(shares)], rounds, strict=True)
        )
        log_q, learnt, curve = np.empty(len(target.mass)), [], []
        everywhere = np.empty((len(target), len(target.classes))) if how.all_classes else None
        end = 0.0
        for number, fold in enumerate(folds):
            end += self._cost(fold, rounds[0])
            own, scored = self._one(f"fold {number + 1} of {len(folds)}", fold, fold.fit, how.rates or ())
            self.done = end
            log_q[target.entries(fold.test)] = self._own(fold, scored)
            if everywhere is not None:
                everywhere[fold.test] = scored
            learnt.append(own)
        first = folds[0]
        for share in shares:
            end += self._cost(first, how.epochs)
            part = _part(first.fit, group, share, how.seed)
            name = f"fold 1 of {len(folds)} from {len(part)} questions"
            own, scored = self._one(name, first, part, (learnt[0].rate,))
            self.done = end
            curve.append(self._point(own, first.test, self._own(first, scored)))
        curve.append(self._point(learnt[0], first.test, log_q[target.entries(first.test)]))
        return Generated(log_q, tuple(learnt), tuple(curve), everywhere)

    def _own(self, fold: Fold, scored: Sequence[FloatArray]) -> FloatArray:
        """[entry] log-probabilities of the held-out questions' own classes, of those that were scored."""
        if not self.how.all_classes:
            return np.concatenate(scored)
        held = self.target.select(fold.test)
        return np.stack(scored)[held.question, held.column]

    def _one(self, name: str, fold: Fold, fit: IntArray, rates: Sequence[float]) -> tuple[Learnt, list[FloatArray]]:
        """One training, and log-probabilities of the classes that are scored of each held-out question."""
        file = self.folder / f"{name}.json"
        if file.exists():
            kept = json.loads(file.read_text())
            losses = {name: tuple(kept["learnt"][name]) for name in ("training", "validation")}
            return Learnt(**kept["learnt"] | losses), [np.array(own) for own in kept["log_q"]]
        trainings = [self._training(name, fold, fit, rate) for rate in rates]
        for training in trainings:
            training.until(1)
        best = min(trainings, key=lambda training: training.validation[1])
        best.finish()
        self.emitter.set(best.best_adapters)
        self._tell(f"{name}: scoring", None, 0.0)
        scored = self.emitter.score_all([(self.asked[i].prompt, self.scored[i]) for i in fold.test])
        self.worked += self._scoring(fold)
        own = Learnt(len(fit), best.schedule.rate, best.best, tuple(best.training), tuple(best.validation))
        text = json.dumps({"learnt": asdict(own), "log_q": [of_question.tolist() for of_question in scored]})
        write_atomically(file, lambda path: path.write_text(text))
        for training in trainings:
            training.file.unlink(missing_ok=True)
        return own, scored

    def _training(self, name: str, fold: Fold, fit: IntArray, rate: float) -> AdapterTraining:
        how = self.how
        schedule = Schedule(rate, how.epochs, how.cooling, self._steps(fold), self.draws, how.batch, how.seed)
        learnt, validated = ([self.asked[i] for i in rows] for rows in (fit, fold.validation))
        file = self.folder / f"{name}, rate {rate:g}.safetensors"

        def told(loss: float) -> None:
            self._tell(name, loss, 1.0)

        return AdapterTraining(self.emitter, name, learnt, validated, schedule, file, told)

    def _steps(self, fold: Fold) -> int:
        """Of an epoch."""
        return max(self.how.steps, -(-len(fold.fit) // self.how.batch))

    def _cost(self, fold: Fold, rounds: int) -> float:
        """Of a training and its scoring, in steps, at most."""
        return (rounds + self.how.cooling) * self._steps(fold) + self._scoring(fold)

    def _scoring(self, fold: Fold) -> float:
        """Cost of scoring, in steps: a pass without gradients takes about 0.4 of one with them."""
        classes = sum(len(self.scored[i]) for i in fold.test)
        return 0.4 * max(len(fold.test), classes / self.draws) / self.how.batch

    def _tell(self, what: str, loss: float | None, steps: float) -> None:
        self.done += steps
        self.worked += steps
        per_step = (time.monotonic() - self.began) / self.worked if self.worked else None
        left = None if per_step is None else max(0.0, self.planned - self.done) * per_step
        self.told(Progress(what, loss, min(1.0, self.done / self.planned), left))

    def _point(self, learnt: Learnt, rows: IntArray, log_q: FloatArray) -> CurvePoint:
        held = self.target.select(rows)
        losses = np.bincount(held.question, -held.mass * log_q, len(held)).astype(np.float64)
        return CurvePoint(learnt, rows, losses)


def _part(rows: IntArray, group: Sequence[str], share: float, seed: int) -> IntArray:
    """About a share of the rows, in whole groups; smaller parts are contained in larger ones."""
    ordered = [rows[own] for own in shuffled_groups(np.asarray(group)[rows].tolist(), seed=seed)]
    enough = int(np.searchsorted(np.cumsum([len(own) for own in ordered]), share * len(rows))) + 1
    return np.sort(np.concatenate(ordered[:enough]))
