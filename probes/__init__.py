"""What a model knew before it answered: activations before generation, probes that predict its class distribution from
them, and interventions that change them.

Imports semcal, which knows nothing of probes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.activations.capture import capture
    from probes.plots.probe_plots import plot
    from probes.rungs.linear import LinearProbe

__all__ = ["LinearProbe", "capture", "plot"]
# Imported when first used: torch takes seconds, and the names of rungs are needed to check a study.
_HOMES = {
    "LinearProbe": "probes.rungs.linear",
    "capture": "probes.activations.capture",
    "plot": "probes.plots.probe_plots",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
