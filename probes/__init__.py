"""What the model knew before it spoke: activations before generation, a ladder of probes of its class distribution, and
what becomes of its answers when what they read is changed.

Imports semcal, which knows nothing of probes.
"""

from probes.adapters import LoRAProbe
from probes.attention import AttentionProbe, Segments
from probes.bilinear import BilinearProbe, OpenQuestions, open_target, text_embeddings
from probes.capture import Activations, ResidualCapture, capture
from probes.chains import Chain, read_chains
from probes.interventions import Ablate, Patch, Steer, intervene
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
    "Ablate",
    "Activations",
    "AttentionProbe",
    "BilinearProbe",
    "Chain",
    "LensProbe",
    "LinearProbe",
    "LoRAProbe",
    "LowRankProbe",
    "MLPProbe",
    "OpenQuestions",
    "Patch",
    "ResidualCapture",
    "RidgeLogitProbe",
    "Segments",
    "Steer",
    "b_confidence",
    "capture",
    "class_target",
    "first_token_entropy",
    "first_tokens",
    "intervene",
    "mode_correctness",
    "number_of_classes",
    "open_target",
    "ranked_target",
    "read_chains",
    "semantic_entropy",
    "share_target",
    "text_embeddings",
]
