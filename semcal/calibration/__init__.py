"""Is the confidence earned? Measures, nulls and intervals for pairs of (confidence, correctness).

Knows class counts and which classes are gold; knows no model, no text and no torch.
"""

from semcal.calibration.measures.smece import smece
from semcal.calibration.summary import Calibration, calibrate

__all__ = ["Calibration", "calibrate", "smece"]
