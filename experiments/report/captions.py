"""What each figure shows, in a sentence or two."""

CAPTIONS = {
    "reliability": "Accuracy against B-confidence, smoothed, with what a calibrated model would show at this number of "
    "questions and samples; below, how many questions have which confidence.",
    "risk-coverage": "Errors among the questions answered, the surest first, between a perfect order and none.",
    "m-curve": "Random parts of the samples, and where they lead as M grows.",
    "profile": "Calibration of the same samples under other collapsing functions.",
    "knowing": "How decided the answer is after i tokens: the expected largest class probability.",
    "layers": "How much of the class distribution linear probes read, layer by layer, on questions held out.",
    "layers-positions": "The same at every position. The target is always the class distribution of all samples, also "
    "where an answer is already being written.",
    "rungs": "Rungs of the ladder beside the baselines, at one layer. A rung that explains little says that it cannot "
    "read it there, not that it is not known.",
    "commitment": "Above, how decided the answer is along the way; below, how much of the class distribution of all "
    "samples linear probes read by then. Once the answer at hand is being written, activations hold it rather than "
    "that distribution. The open mark lies before the answering phrase, at its mean place.",
    "models": "What each model knows, which way its confidence departs from it, and by how much more than that of "
    "calibrated models. The gap is by mass where log-probabilities are known. Bars are bootstrap intervals by group.",
    "predictability": "Is a model calibrated where it can predict its own class distribution? A mark a run: across, "
    "how much of it a linear probe reads at the last prompt token, last layer, as a share of what M samples let anyone "
    "read; up, the calibration error beyond what calibrated models show. Bars are bootstrap intervals by group.",
    "emergence": "The same two figures after so many steps of training: does predictability come before calibration?",
}
CAPTIONS["commitment-tokens"] = CAPTIONS["commitment"]
INTERVENTION = (
    "Dose and response, with every random control. What a probe reads is used only where changing it does more than "
    "random changes of the same strength."
)
