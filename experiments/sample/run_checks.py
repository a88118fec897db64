"""The checks that every run makes while it is sampled, whatever the model: each with its figure, or why it could not be
made. They are kept in the manifest as `checks`, and the run's page shows them.

Numbers that must not be wrong stop the run before they are written: the number of samples, where answers end, the token
at the captured position, equality with plain forward passes. The law of the sampler is a test with a false-alarm rate,
over the whole run; where it fails, the run is finished and says so loudly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.sample.answer_ends import AnswerEnds
from experiments.sample.models import Answerer
from probes.activations.capture import ResidualCapture
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import in_answer
from semcal.runs.stored_activations import Activations
from semcal.sampling.checks import FAILED, NOT_MADE, Check, LawWatch, reference_check, stated_apart
from semcal.sampling.decoding.rounding import ROOM, is_low, remedy, rounded_once_more
from semcal.sampling.records import LENGTH, Outcome

if TYPE_CHECKING:
    from experiments.sample.asked import Asked
    from experiments.sample.capturing import Captured
    from experiments.sample.sampling_job import SamplingJob
    from semcal.runs.partial_shard import Rows

SAMPLES, ENDS = "samples per question", "where answers end"
TOKENS, ACTIVATIONS = "token at the captured position", "captured activations"
REFERENCE, LAW = "equality with plain passes", "law of the sampler"
ENUMERATED = "answers were enumerated, not drawn"
SERVED = "a served model shows neither its activations nor passes over whole sequences"


class RunChecks:
    """Checks every shard of a job before it is written.

    Attributes:
        watch: For the sampler; None where nothing is drawn here.
        law: Of an engine in another process, which was tested before; None where there is none.
        cpu_seconds: What `timed` blocks have taken so far.
    """

    def __init__(self, job: SamplingJob, model: Answerer) -> None:
        self.job, self.model = job, model
        drawn_here = isinstance(model, LanguageModel) and not job.cell.enumerated and job.cell.model.engine == "hf"
        self.watch = LawWatch(job.settings) if drawn_here else None
        self.ends = AnswerEnds(model, job.settings) if isinstance(model, LanguageModel) else None
        self.law: Check | None = None
        self.cpu_seconds = 0.0
        self._questions, self._answers, self._tokens = 0, 0, 0
        self._compared: list[Check] = []
        self._failed: dict[str, Check] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the CPU seconds of a block as those of checks."""
        began = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds += time.process_time() - began

    def shard(
        self, asked: Sequence[Asked], rows: Mapping[str, Rows], captured: Captured | None, work: Mapping[str, Any]
    ) -> None:
        """Check the answers and activations of a shard.

        Raises:
            UserError: a check failed, with its figure.
        """
        self._questions += len(asked)
        if not self.job.cell.enumerated:
            m = self.job.settings.m
            missing = {a.question.id: sum(r["count"] for r in rows[a.question.id]) - m for a in asked}
            key, off = max(missing.items(), key=lambda item: abs(item[1]))
            self._must_pass(Check.of(SAMPLES, abs(off), 0, f"question {key!r} has {m + off} samples, M is {m}"))
        if self.ends is not None:
            answers = [row for a in asked for row in rows[a.question.id]]
            self._answers += len(answers)
            wrong = self.ends.wrong(answers)
            where = ", ".join(repr(row["question_id"]) for row in wrong[:3])
            self._must_pass(Check.of(ENDS, len(wrong), 0, f"of {where}"))
        if captured is not None:
            self._tokens += sum(len(at.token_ids) for at in captured.found.values())
            for position, at in captured.found.items():
                wrong = _wrong_tokens(position, at, captured)
                self._must_pass(Check.of(TOKENS, len(wrong), 0, f"{position} of {', '.join(map(repr, wrong[:3]))}"))
        if isinstance(self.model, LanguageModel) and not self._compared:  # a few prompts of the run
            few = [asked[0], asked[-1]] if len(asked) > 1 else [asked[0]]
            self._compared = self._with_plain_passes(few, rows, captured, work)
            for check in self._compared:
                self._must_pass(check)

    def _must_pass(self, check: Check) -> None:
        if check.outcome != FAILED:
            return
        self._failed[check.name] = check
        advice = remedy(self.model.model) if isinstance(self.model, LanguageModel) else "try another model"
        raise UserError(
            f"check failed: {check.name}, {check.why}: {check.figure:.3g}, at most {check.limit:.3g} is right; the run "
            f"is stopped before a wrong number is written; {advice}, and report this one"
        )

    def _with_plain_passes(
        self, few: Sequence[Asked], rows: Mapping[str, Rows], captured: Captured | None, work: Mapping[str, Any]
    ) -> list[Check]:
        """Answers and activations of a few prompts against one plain pass over each prompt with an answer."""
        model, settings = self.model, self.job.settings
        assert isinstance(model, LanguageModel)
        observer = moved = None
        if captured is not None and captured.where:
            places = {a.question.id: captured.where[a.question.id] for a in few}
            observer = ResidualCapture(self.job.cell.capture.hooks, places)
            moved = ResidualCapture(self.job.cell.capture.hooks, places) if is_low(model.dtype) else None
        exact = settings.top_k is None and settings.top_p is None
        drawn = [(a.prompt, _likeliest(rows[a.question.id])) for a in few]
        stated = None
        if exact or observer:
            stated = stated_apart(model.model, model.device, settings, drawn, observer)
        if moved is not None:
            with rounded_once_more(model.model):
                stated_apart(model.model, model.device, settings, drawn, moved)
        compared = [reference_check(work, stated if exact else None, len(few))]
        if observer is not None and captured is not None:
            compared.append(activations_check(model, [a.question.id for a in few], captured, observer, moved))
        return compared

    def made(self) -> list[Check]:
        """All checks, in the order of the page."""
        served = () if isinstance(self.model, LanguageModel) else self.model.work.checks
        if self._questions == 0 and not served:
            return []
        found = [
            self._samples(),
            self._ends(),
            *(served or (self._law(), *(self._compared[:1] or [Check.not_made(REFERENCE, SERVED)]))),
            self._read_at(),
            *(self._compared[1:] or [Check.not_made(ACTIVATIONS, self._unread("nothing is captured in prompts"))]),
        ]
        return [self._failed.get(check.name, check) for check in found]

    def _samples(self) -> Check:
        if self.job.cell.enumerated:
            return Check.not_made(SAMPLES, ENUMERATED)
        m = self.job.settings.m
        return Check.of(SAMPLES, 0, 0, f"missing or surplus samples in any of {self._questions} questions; M is {m}")

    def _ends(self) -> Check:
        if self.ends is None:
            return Check.not_made(ENDS, "a served model shows no token ids")
        return Check.of(ENDS, 0, 0, f"answers that end elsewhere than their token ids say, of {self._answers}")

    def _law(self) -> Check:
        if self.watch is not None:
            return self.watch.check()
        if self.law is not None:
            return self.law
        return Check.not_made(LAW, ENUMERATED if self.job.cell.enumerated else SERVED)

    def _read_at(self) -> Check:
        if not self._tokens:
            return Check.not_made(TOKENS, self._unread("nothing is captured"))
        return Check.of(TOKENS, 0, 0, f"rows read at another token than prompt or answer has there, of {self._tokens}")

    def _unread(self, why: str) -> str:
        return why if isinstance(self.model, LanguageModel) else SERVED


def activations_check(
    model: LanguageModel, keys: Sequence[str], captured: Captured, plain: ResidualCapture, moved: ResidualCapture | None
) -> Check:
    """Whether what was captured in prompts is what plain passes showed: at each layer, the length of the difference
    relative to that of the layer's numbers, where it is largest.

    In single precision, each of the 2 L additions to the stream of L layers rounds once, and their sum is off by about
    √(2 L) epsilon, the sums in a product by the root of epsilon. In 16 bits that would bound another batch of the same
    kernels alone: on random Llama, Qwen2 and Gemma 3 models, vLLM's stream was as far from that of Hugging Face's sdpa
    kernels as is Hugging Face's own eager pass (2 % of its length after four layers), and nearer than both to a pass in
    64 bits. So there the limit is measured on the same tokens, as it is for log-probabilities: twice what plain passes
    move when each module is rounded once more.

    Args:
        moved: What plain passes showed that were rounded once more; None in single precision.
    """
    depth = model.model.config.get_text_config().num_hidden_layers
    single = torch.finfo(torch.float32).eps
    least = math.sqrt(single) + math.sqrt(2 * depth) * single
    apart, limit = 0.0, least
    for position in {position for key in keys for position in captured.where[key]}:
        expected, at = plain.take(keys, position), captured.found[position]
        once_more = moved.take(keys, position) if moved else expected
        first = at.rows.cumsum() - at.rows
        read = [at.keys.index(key) for key in keys]
        chosen = np.concatenate([np.arange(first[i], first[i] + at.rows[i]) for i in read])
        for ours, theirs, rounded in (
            (at.values[chosen], expected.values, once_more.values),
            (at.heads[chosen], expected.heads, once_more.heads),
        ):
            if ours.size:
                found, allowed = _off(ours, theirs), least + ROOM * _off(rounded, theirs)
                worst = int((found / allowed).argmax())
                if found[worst] / allowed[worst] > apart / limit:
                    apart, limit = float(found[worst]), float(allowed[worst])
    why = f"{len(keys)} prompts against passes without cache and padding, relative to the length of a layer's numbers"
    return Check.of(ACTIVATIONS, apart, limit, why)


def _off(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[row, layer, ...] -> [layer] the largest relative length of a row's difference."""
    theirs = theirs.astype(np.float64).reshape(*theirs.shape[:2], -1)
    difference = ours.reshape(theirs.shape) - theirs
    return (np.linalg.norm(difference, axis=-1) / (np.linalg.norm(theirs, axis=-1) + 1e-30)).max(0)


def together(manifest: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of sampling (its checks, its seconds, its work), after some more of it."""
    return {
        "checks": merged(manifest.get("checks", []), [Check(**check) for check in further.get("checks", [])]),
        "sampling_seconds": manifest.get("sampling_seconds", 0.0) + further.get("sampling_seconds", 0.0),
        "sampling_work": [*manifest.get("sampling_work", []), *further.get("sampling_work", [])],
    }


def merged(earlier: Sequence[Mapping[str, Any]], now: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks of a run that was resumed: the latest of each, but a law that failed once stays failed, and what could
    be made before stays made."""
    before = {check["name"]: dict(check) for check in earlier}
    after = {check.name: asdict(check) for check in now}
    for name, old in before.items():
        new = after.get(name)
        if new is None or (name == LAW and old["outcome"] == FAILED) or new["outcome"] == NOT_MADE != old["outcome"]:
            after[name] = old
    return list(after.values())


def _wrong_tokens(position: str, at: Activations, captured: Captured) -> list[str]:
    """The questions that were read at another place or token than they should have been."""
    wrong, row = [], 0
    for key, n in zip(at.keys, at.rows.tolist(), strict=True):
        places, ids = at.token_index[row : row + n].tolist(), at.token_ids[row : row + n].tolist()
        whole = captured.sequences[key]
        right = [whole[place] if place < len(whole) else None for place in places] == ids
        if not in_answer(position):
            wanted = list(captured.where[key].get(position, ()))
            right = right and places == (wanted[-1:] if n == 1 else wanted)
        wrong += [] if right else [key]
        row += n
    return wrong


def _likeliest(rows: Rows) -> Outcome:
    """The answer drawn most often, or the likeliest one enumerated; an empty one if none was."""
    row = rows[0] if rows else {"token_ids": (), "logprob": 0.0, "finish": LENGTH}
    return Outcome(tuple(row["token_ids"]), row["logprob"], row["finish"])
