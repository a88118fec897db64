"""How a model answers: token ids in, distinct token sequences with counts, log-probabilities and finish out.

Knows no dataset and no probe; text enters only where a sample stops by a string.
"""

from semcal.sampling.engine import Observer, PromptBatch, generate, pad_left, prefill
from semcal.sampling.records import LENGTH, STOP, Answered, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule, cut

__all__ = [
    "LENGTH",
    "STOP",
    "Answered",
    "Observer",
    "Prompt",
    "PromptBatch",
    "Sample",
    "Sampling",
    "StopRule",
    "cut",
    "generate",
    "pad_left",
    "prefill",
]
