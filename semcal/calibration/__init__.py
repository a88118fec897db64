"""Is the confidence earned? Measures, nulls and intervals for class tables.

Knows class counts and which classes are gold; knows no model, no text and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semcal.calibration.measures.smece import smece
    from semcal.calibration.summary import Calibration, calibrate

__all__ = ["Calibration", "calibrate", "smece"]
# Imported when first used: a study file that is only parsed should not wait for SciPy.
_HOMES = {
    "Calibration": "semcal.calibration.summary",
    "calibrate": "semcal.calibration.summary",
    "smece": "semcal.calibration.measures.smece",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'semcal.calibration' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
