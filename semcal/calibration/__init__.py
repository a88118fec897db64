"""Is the confidence earned? Measures, nulls and intervals for pairs of (confidence, correctness).

Knows class counts and a gold index; knows no model, no text and no torch.
"""

from semcal.calibration.binned import BrierParts, binned, brier_parts, debiased_ece, ece, ece_edges, mce
from semcal.calibration.bootstrap import Groups, Interval, bootstrap, groups
from semcal.calibration.classwise import ClassCalibration, Classwise, classwise
from semcal.calibration.closed import ClosedSet
from semcal.calibration.confidence import Confidences, SplitHalf, confidences, confidences_of_masses, split_half
from semcal.calibration.diagram import reliability_diagram
from semcal.calibration.exchange import exchanged
from semcal.calibration.figures import confidence_histogram, m_curve_figure, risk_coverage_curve
from semcal.calibration.kernel import Convention
from semcal.calibration.measures import auroc, brier, log_loss, signed_gap, weighted_mean
from semcal.calibration.null import Band, Null, exact_null, null_band, simulated_null
from semcal.calibration.selective import RiskCoverage, aurc, risk_coverage
from semcal.calibration.skce import KernelCalibration, skce
from semcal.calibration.smece import ReliabilityCurve, SmoothECE, smece, smece_batch, smooth_curve
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.calibration.thinning import thin

__all__ = [
    "Band",
    "BrierParts",
    "Calibration",
    "ClassCalibration",
    "Classwise",
    "ClosedSet",
    "Confidences",
    "Convention",
    "Groups",
    "Interval",
    "KernelCalibration",
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
    "classwise",
    "confidence_histogram",
    "confidences",
    "confidences_of_masses",
    "debiased_ece",
    "ece",
    "ece_edges",
    "exact_null",
    "exchanged",
    "groups",
    "log_loss",
    "m_curve_figure",
    "mce",
    "null_band",
    "reliability_diagram",
    "risk_coverage",
    "risk_coverage_curve",
    "signed_gap",
    "simulated_null",
    "skce",
    "smece",
    "smece_batch",
    "smooth_curve",
    "split_half",
    "thin",
    "weighted_mean",
]
