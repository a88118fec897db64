"""What sampling a cell will take, estimated: tokens, memory, GPU hours.

Pure arithmetic on numbers that `dryrun.py` has gathered; knows no study, no model and no dataset. Nothing here is
measured: the assumptions are the fields of `Accelerator`, and reports show them beside every figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Floating-point operations a second of a dense matrix product, by the dtype of the weights.
H100_FLOPS = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
PREFILL_TOKENS = 8192  # in one pass


@dataclass(frozen=True)
class Shape:
    """What of a model its cost depends on.

    Attributes:
        parameters: Weights, embeddings included.
        layers: Decoder layers.
        width: Of the residual stream.
        kv_values: Numbers that one token position leaves in all layers' keys and values.
        vocabulary: Token ids that the output layer scores.
        context: Most positions; None where it is not known.
        source: Where all this is from: "configuration", "table" (see `shapes.py`) or "name" (a rule of thumb).
    """

    parameters: float
    layers: int
    width: int
    kv_values: int
    vocabulary: int
    context: int | None
    source: str


@dataclass(frozen=True)
class Accelerator:
    """A GPU, and how much of it is assumed to be reached.

    Attributes:
        name: In words.
        memory: Bytes.
        usable: Share of the memory that is left beside what the driver holds.
        bandwidth: Bytes a second, of the data sheet.
        bandwidth_share: Share of it that is reached.
        flops: dtype -> operations a second, of the data sheet, without sparsity.
        utilisation: Share of them that is reached.
        layer_seconds: What one layer takes at least in one pass: launching its kernels from Python.
        kv_share: Share of the memory beside the weights that the sampler gives to keys and values.
    """

    name: str = "H100 SXM, 80 GB"
    memory: float = 80e9
    usable: float = 0.95
    bandwidth: float = 3.35e12
    bandwidth_share: float = 0.6
    flops: dict[str, float] = field(default_factory=lambda: dict(H100_FLOPS))
    utilisation: float = 0.4
    layer_seconds: float = 1e-3
    kv_share: float = 0.6

    def in_words(self) -> str:
        """The assumptions in one line."""
        peak = self.flops["bfloat16"]
        return (
            f"{self.name}: a pass takes the longest of 2 × parameters operations a token at {self.utilisation:.0%} of "
            f"{peak / 1e12:.0f} TFLOP/s (in 16 bits), weights and keys and values read at {self.bandwidth_share:.0%} "
            f"of {self.bandwidth / 1e12:.2f} TB/s, and {self.layer_seconds * 1e3:g} ms a layer to launch its kernels; "
            "several GPUs hold a model layer by layer and work one after the other"
        )


@dataclass(frozen=True)
class Workload:
    """What a cell asks of a model.

    Attributes:
        questions: Number of them.
        m: Samples a question.
        prefix: Tokens that all prompts begin with, read once.
        tail: Mean other tokens of a prompt.
        longest: Tokens of the longest prompt.
        answer: Expected mean tokens of an answer, what ends it included.
        most: The most new tokens of an answer.
        reread: Tokens read a second time for activations along the answer, a question.
        rows: Most answers decoded in one pass.
        captured: Numbers of activations kept, a question.
        captured_bytes: Bytes of one of them on disk.
        shard: Questions whose activations are held until they are written.
        dtype: Of the weights.
    """

    questions: int
    m: int
    prefix: int
    tail: float
    longest: int
    answer: float
    most: int
    reread: float
    rows: int
    captured: int
    captured_bytes: int
    shard: int
    dtype: str

    @property
    def prefill_tokens(self) -> int:
        """Tokens read before anything is generated, as the sampler's own record counts them."""
        return self.prefix + round(self.questions * self.tail)

    @property
    def decode_tokens(self) -> int:
        """Tokens generated, as expected; identical answers are decoded once, so that fewer may be computed."""
        return round(self.questions * self.m * self.answer)

    @property
    def decode_tokens_most(self) -> int:
        """Tokens generated if every answer were cut at its greatest length."""
        return self.questions * self.m * self.most


@dataclass(frozen=True)
class Cost:
    """What a workload takes on some GPUs, estimated.

    Attributes:
        weights_bytes, kv_bytes, logits_bytes: Held on the GPUs at the most; keys and values as the sampler would have
            in flight if every answer were as long as can be.
        gpus: As many as make `hours_most` fewest, and at least as many as hold the weights and one question with all
            its answers at their greatest length.
        rows: Answers in flight at that length.
        hours, hours_most: GPU hours of reading and generating: as expected, and at the greatest length of answers.
            Loading weights, scoring and probing are not in them.
    """

    weights_bytes: float
    kv_bytes: float
    logits_bytes: float
    gpus: int
    rows: int
    hours: float
    hours_most: float


@dataclass(frozen=True)
class Activations:
    """Bytes of activations before generation: on disk for a whole cell, and in memory for a shard on its way there."""

    disk: int
    memory: int


def activations(work: Workload) -> Activations:
    """They are held in single precision, twice while a shard is put together, and written as `captured_bytes` says."""
    held = min(work.shard, work.questions)
    return Activations(work.questions * work.captured * work.captured_bytes, 2 * held * work.captured * 4)


def cost(work: Workload, shape: Shape, gpu: Accelerator) -> Cost:
    """Memory and GPU hours of a workload.

    Keys and values: a question in flight holds its prompt once and every answer's tokens, no two answers alike. How
    many are in flight follows the sampler's own budget (`semcal.sampling.Budget`), so that more GPUs than the fewest
    that hold the model may come cheaper.

    Raises:
        ValueError: a dtype of unknown speed.
    """
    if work.dtype not in gpu.flops:
        raise ValueError(f"dtype {work.dtype!r} has no speed on {gpu.name}; it has {', '.join(gpu.flops)}")
    size = ITEMSIZE[work.dtype]
    weights, position = shape.parameters * size, shape.kv_values * size
    one_question = position * (work.longest + work.m * work.most) + _logits_bytes(work.m, shape, size)
    fewest = math.ceil((weights + one_question) / (gpu.usable * gpu.memory))
    return min((_on(gpus, work, shape, gpu) for gpus in range(fewest, 2 * fewest + 1)), key=lambda c: c.hours_most)


def _on(gpus: int, work: Workload, shape: Shape, gpu: Accelerator) -> Cost:
    size = ITEMSIZE[work.dtype]
    weights, position = shape.parameters * size, shape.kv_values * size
    room = gpu.kv_share * (gpu.usable * gpu.memory - weights / gpus) / position  # in token positions, on one GPU
    read = work.prefix + work.questions * (work.tail + work.reread)
    at_once = min(PREFILL_TOKENS, read)
    reading = read / at_once * _pass_seconds(at_once, 0, work, shape, gpu)

    def hours(rows: float, answer: float) -> float:
        held = position * (work.prefix + rows * (work.tail / work.m + answer / 2))  # an answer is half grown on average
        passes = work.questions * work.m * answer / rows
        return gpus * (passes * _pass_seconds(rows, held, work, shape, gpu) + reading) / 3600

    full, usual = _in_flight(work, work.most, room), _in_flight(work, work.answer, room)
    return Cost(
        weights_bytes=weights,
        kv_bytes=position * (work.prefix + full * (work.tail / work.m + work.most)),
        logits_bytes=_logits_bytes(full, shape, size),
        gpus=gpus,
        rows=round(full),
        hours=hours(usual, work.answer),
        hours_most=hours(full, work.most),
    )


def _pass_seconds(tokens: float, kv_bytes: float, work: Workload, shape: Shape, gpu: Accelerator) -> float:
    """One forward pass over so many tokens: bound by launching, by computing or by reading, whichever is longest."""
    computing = 2 * shape.parameters * tokens / (gpu.utilisation * gpu.flops[work.dtype])
    reading = (shape.parameters * ITEMSIZE[work.dtype] + kv_bytes) / (gpu.bandwidth_share * gpu.bandwidth)
    return max(shape.layers * gpu.layer_seconds, computing, reading)


def _in_flight(work: Workload, answer: float, room: float) -> float:
    """Answers in flight: as many as one pass may decode, as there are, and as keys and values have room for."""
    fitting = (room - work.prefix) * work.m / (work.tail + work.m * answer)
    return max(work.m, min(work.rows, work.questions * work.m, fitting))


def _logits_bytes(rows: float, shape: Shape, size: int) -> float:
    return rows * shape.vocabulary * (size + 4)  # as the model gives them, and in single precision
