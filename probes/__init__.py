"""What the model knew before it spoke: activations before generation, linear probes of its class distribution, and
what becomes of its answers when what they read is changed.

Imports semcal, which knows nothing of probes.
"""

from probes.capture import Activations, ResidualCapture, capture
from probes.chains import Chain, read_chains
from probes.interventions import Ablate, Patch, Steer, intervene
from probes.linear import LinearProbe
from probes.targets import b_confidence, class_target, semantic_entropy

__all__ = [
    "Ablate",
    "Activations",
    "Chain",
    "LinearProbe",
    "Patch",
    "ResidualCapture",
    "Steer",
    "b_confidence",
    "capture",
    "class_target",
    "intervene",
    "read_chains",
    "semantic_entropy",
]
