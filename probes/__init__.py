"""What the model knew before it spoke: activations before generation, probes that predict its class distribution from
them, and what becomes of its answers when these activations are changed.

Imports semcal, which knows nothing of probes.
"""

from probes.activations.capture import capture
from probes.rungs.linear import LinearProbe

__all__ = ["LinearProbe", "capture"]
