"""Is the confidence earned? Measures, nulls and intervals for pairs of (confidence, correctness).

Knows class counts and a gold index; knows no model, no text and no torch.
"""

from semcal.calibration.binned import BrierParts, binned, brier_parts, debiased_ece, ece, ece_edges, mce
from semcal.calibration.bootstrap import Groups, Interval, bootstrap, groups
from semcal.calibration.confidence import Confidences, SplitHalf, confidences, confidences_of_masses, split_half
from semcal.calibration.diagram import reliability_diagram
from semcal.calibration.kernel import Convention
from semcal.calibration.measures import auroc, brier, log_loss, signed_gap, weighted_mean
from semcal.calibration.null import Band, Null, exact_null, null_band, simulated_null
from semcal.calibration.paired import STATISTICS, Difference, holm, paired_difference, smallest_difference
from semcal.calibration.selective import RiskCoverage, aurc, risk_coverage
from semcal.calibration.smece import ReliabilityCurve, SmoothECE, smece, smece_batch, smooth_curve
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.calibration.thinning import thin

__all__ = [
    "STATISTICS",
    "Band",
    "BrierParts",
    "Calibration",
    "Confidences",
    "Convention",
    "Difference",
    "Groups",
    "Interval",
    "Null",
    "ReliabilityCurve",
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
    "holm",
    "log_loss",
    "mce",
    "null_band",
    "paired_difference",
    "reliability_diagram",
    "risk_coverage",
    "signed_gap",
    "simulated_null",
    "smallest_difference",
    "smece",
    "smece_batch",
    "smooth_curve",
    "split_half",
    "thin",
    "weighted_mean",
]
