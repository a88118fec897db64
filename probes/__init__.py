"""What a model knew before it answered: activations before generation, probes that predict its class distribution from
them, and interventions that change them.

Imports semcal, which knows nothing of probes.
"""

from probes.activations.capture import capture
from probes.rungs.linear import LinearProbe

__all__ = ["LinearProbe", "capture"]
