"""How a model answers: token ids in, distinct token sequences with counts, log-probabilities and finish out.

Knows no dataset and no probe; text enters only where a sample stops by a string.
"""

from semcal.sampling.decoders import Observer, PromptBatch, pad_left, prefill, shared_prefix
from semcal.sampling.engine import EXPANDED, MEMORY_SHARE, SHARED, Budget, Sampler, Work, kv_values, usual_rows
from semcal.sampling.exact import enumerate_answers
from semcal.sampling.records import LENGTH, STOP, Answered, Enumerated, Outcome, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule, cut

__all__ = [
    "EXPANDED",
    "LENGTH",
    "MEMORY_SHARE",
    "SHARED",
    "STOP",
    "Answered",
    "Budget",
    "Enumerated",
    "Observer",
    "Outcome",
    "Prompt",
    "PromptBatch",
    "Sample",
    "Sampler",
    "Sampling",
    "StopRule",
    "Work",
    "cut",
    "enumerate_answers",
    "kv_values",
    "pad_left",
    "prefill",
    "shared_prefix",
    "usual_rows",
]
