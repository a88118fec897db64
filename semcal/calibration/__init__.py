"""Is the confidence earned? Measures, nulls and intervals for pairs of (confidence, correctness).

Knows class counts and a gold index; knows no model, no text and no torch.
"""

from semcal.calibration.association import Association, grid_association
from semcal.calibration.binned import BrierParts, binned, brier_parts, debiased_ece, ece, ece_edges, mce
from semcal.calibration.bootstrap import Groups, Interval, bootstrap, groups
from semcal.calibration.classwise import ClassCalibration, Classwise, classwise
from semcal.calibration.closed import ClosedSet
from semcal.calibration.confidence import Confidences, SplitHalf, confidences, confidences_of_masses, split_half
from semcal.calibration.contrasts import Contrast, Leaves, contrast, leaves, plain_mean
from semcal.calibration.diagram import reliability_diagram
from semcal.calibration.equivalence import Equivalence, equivalence, equivalence_of, exact_equivalence
from semcal.calibration.exchange import exchanged
from semcal.calibration.figures import confidence_histogram, m_curve_figure, risk_coverage_curve
from semcal.calibration.finite_m import Estimate, estimates
from semcal.calibration.holm import holm
from semcal.calibration.kernel import Convention
from semcal.calibration.loss_equivalence import LossEquivalence, loss_equivalence
from semcal.calibration.loss_gap import LossGap, loss_gap, simulated_loss_gap
from semcal.calibration.masses import class_masses
from semcal.calibration.mcurve import MCurve, m_curve
from semcal.calibration.measures import auroc, brier, log_loss, signed_gap, weighted_mean
from semcal.calibration.null import Band, Null, exact_null, exchange_null, null_band, null_of_counts, simulated_null
from semcal.calibration.paired import STATISTICS, Difference, difference_of, paired_difference, smallest_difference
from semcal.calibration.recalibrate import Remedy, recalibrated, remedies, temperature
from semcal.calibration.selective import RiskCoverage, aurc, risk_coverage
from semcal.calibration.skce import KernelCalibration, skce
from semcal.calibration.smece import ReliabilityCurve, SmoothECE, smece, smece_batch, smooth_curve
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.calibration.thinning import thin
from semcal.calibration.tilt import loss_change

__all__ = [
    "STATISTICS",
    "Association",
    "Band",
    "BrierParts",
    "Calibration",
    "ClassCalibration",
    "Classwise",
    "ClosedSet",
    "Confidences",
    "Contrast",
    "Convention",
    "Difference",
    "Equivalence",
    "Estimate",
    "Groups",
    "Interval",
    "KernelCalibration",
    "Leaves",
    "LossEquivalence",
    "LossGap",
    "MCurve",
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
    "class_masses",
    "classwise",
    "confidence_histogram",
    "confidences",
    "confidences_of_masses",
    "contrast",
    "debiased_ece",
    "difference_of",
    "ece",
    "ece_edges",
    "equivalence",
    "equivalence_of",
    "estimates",
    "exact_equivalence",
    "exact_null",
    "exchange_null",
    "exchanged",
    "grid_association",
    "groups",
    "holm",
    "leaves",
    "log_loss",
    "loss_change",
    "loss_equivalence",
    "loss_gap",
    "m_curve",
    "m_curve_figure",
    "mce",
    "null_band",
    "null_of_counts",
    "paired_difference",
    "plain_mean",
    "recalibrated",
    "reliability_diagram",
    "remedies",
    "risk_coverage",
    "risk_coverage_curve",
    "signed_gap",
    "simulated_loss_gap",
    "simulated_null",
    "skce",
    "smallest_difference",
    "smece",
    "smece_batch",
    "smooth_curve",
    "split_half",
    "temperature",
    "thin",
    "weighted_mean",
]
