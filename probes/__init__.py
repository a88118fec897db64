"""What the model knew before it spoke: activations before generation, and linear probes of its class distribution.

Imports semcal, which knows nothing of probes.
"""

from probes.capture import Activations, ResidualCapture, capture
from probes.chains import Chain, read_chains
from probes.linear import LinearProbe
from probes.targets import b_confidence, class_target, semantic_entropy

__all__ = [
    "Activations",
    "Chain",
    "LinearProbe",
    "ResidualCapture",
    "b_confidence",
    "capture",
    "class_target",
    "read_chains",
    "semantic_entropy",
]
