"""Is the confidence earned? Measures, nulls and intervals for pairs of (confidence, correctness).

Knows class counts and a gold index; knows no model, no text and no torch.
"""

from semcal.calibration.binned import BrierParts, binned, brier_parts, debiased_ece, ece, ece_edges, mce
from semcal.calibration.bootstrap import Groups, Interval, bootstrap, groups
from semcal.calibration.confidence import Confidences, SplitHalf, confidences, confidences_of_masses, split_half
from semcal.calibration.diagram import reliability_diagram
from semcal.calibration.kernel import Convention
from semcal.calibration.loss_gap import LossGap, loss_gap, simulated_loss_gap
from semcal.calibration.measures import auroc, brier, log_loss, signed_gap, weighted_mean
from semcal.calibration.null import Band, Null, exact_null, null_band, simulated_null
from semcal.calibration.recalibrate import Remedy, recalibrated, remedies, temperature
from semcal.calibration.selective import RiskCoverage, aurc, risk_coverage
from semcal.calibration.smece import ReliabilityCurve, SmoothECE, smece, smece_batch, smooth_curve
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.calibration.tilt import loss_change

__all__ = [
    "Band",
    "BrierParts",
    "Calibration",
    "Confidences",
    "Convention",
    "Groups",
    "Interval",
    "LossGap",
    "Null",
    "ReliabilityCurve",
    "Remedy",
    "RiskCoverage",
    "SmoothECE",
    "SplitHalf",
    "aurc",
    "auroc",
    "binned",
    "bootstrap",
    "brier",
    "brier_parts",
    "calibrate",
    "calibrate_masses",
    "confidences",
    "confidences_of_masses",
    "debiased_ece",
    "ece",
    "ece_edges",
    "exact_null",
    "groups",
    "log_loss",
    "loss_change",
    "loss_gap",
    "mce",
    "null_band",
    "recalibrated",
    "reliability_diagram",
    "remedies",
    "risk_coverage",
    "signed_gap",
    "simulated_loss_gap",
    "simulated_null",
    "smece",
    "smece_batch",
    "smooth_curve",
    "split_half",
    "temperature",
    "weighted_mean",
]
