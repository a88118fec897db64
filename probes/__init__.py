"""What the model knew before it spoke: activations before generation, a ladder of probes of its class distribution, and
what becomes of its answers when what they read is changed.

Imports semcal, which knows nothing of probes.
"""

from probes.adapters import LoRAProbe
from probes.attention import AttentionProbe, Segments
from probes.baselines import first_token_features, random_init_activations, random_init_like
from probes.bilinear import BilinearProbe, OpenQuestions, open_target, text_embeddings
from probes.capture import Activations, ResidualCapture, capture
from probes.chains import Chain, read_chains
from probes.contrast import compare_explained
from probes.evaluate import Evaluation, evaluate, evaluate_scalar
from probes.interventions import Ablate, Patch, Steer, intervene
from probes.layers import Layers
from probes.learning import learning_curve
from probes.lens import LensProbe, first_token_entropy, first_tokens
from probes.linear import LinearProbe, RidgeLogitProbe
from probes.lowrank import LowRankProbe
from probes.mlp import MLPProbe
from probes.online import OnlineCode, online_code
from probes.reliability import Reliability, reliability
from probes.rungs import candidates, evaluate_rung
from probes.targets import (
    b_confidence,
    class_target,
    mode_correctness,
    number_of_classes,
    ranked_target,
    semantic_entropy,
    share_target,
)
from probes.texts import Texts

__all__ = [
    "Ablate",
    "Activations",
    "AttentionProbe",
    "BilinearProbe",
    "Chain",
    "Evaluation",
    "Layers",
    "LensProbe",
    "LinearProbe",
    "LoRAProbe",
    "LowRankProbe",
    "MLPProbe",
    "OnlineCode",
    "OpenQuestions",
    "Patch",
    "Reliability",
    "ResidualCapture",
    "RidgeLogitProbe",
    "Segments",
    "Steer",
    "Texts",
    "b_confidence",
    "candidates",
    "capture",
    "class_target",
    "compare_explained",
    "evaluate",
    "evaluate_rung",
    "evaluate_scalar",
    "first_token_entropy",
    "first_token_features",
    "first_tokens",
    "intervene",
    "learning_curve",
    "mode_correctness",
    "number_of_classes",
    "online_code",
    "open_target",
    "random_init_activations",
    "random_init_like",
    "ranked_target",
    "read_chains",
    "reliability",
    "semantic_entropy",
    "share_target",
    "text_embeddings",
]
