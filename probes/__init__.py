"""What the model knew before it spoke: activations before generation, and a ladder of probes of its class distribution.

Imports semcal, which knows nothing of probes.
"""

from probes.adapters import LoRAProbe
from probes.attention import AttentionProbe, Segments
from probes.bilinear import BilinearProbe, OpenQuestions, open_target, text_embeddings
from probes.capture import Activations, ResidualCapture, capture
from probes.lens import LensProbe, first_token_entropy, first_tokens
from probes.linear import LinearProbe, RidgeLogitProbe
from probes.lowrank import LowRankProbe
from probes.mlp import MLPProbe
from probes.targets import (
    b_confidence,
    class_target,
    mode_correctness,
    number_of_classes,
    ranked_target,
    semantic_entropy,
    share_target,
)

__all__ = [
    "Activations",
    "AttentionProbe",
    "BilinearProbe",
    "LensProbe",
    "LinearProbe",
    "LoRAProbe",
    "LowRankProbe",
    "MLPProbe",
    "OpenQuestions",
    "ResidualCapture",
    "RidgeLogitProbe",
    "Segments",
    "b_confidence",
    "capture",
    "class_target",
    "first_token_entropy",
    "first_tokens",
    "mode_correctness",
    "number_of_classes",
    "open_target",
    "ranked_target",
    "semantic_entropy",
    "share_target",
    "text_embeddings",
]
