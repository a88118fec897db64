"""What each figure and each section of a page shows, in a sentence or two."""

CAPTIONS = {
    "reliability": "Accuracy against B-confidence, smoothed, with the band of a calibrated model at this number of "
    "questions and samples; below, the distribution of confidence.",
    "risk-coverage": "Error rate among the questions answered, most confident first, between a perfect order and none.",
    "m-curve": "Estimates from random subsets of the samples, extrapolated to infinite M.",
    "profile": "Calibration of the same samples under other collapsing functions.",
    "knowing": "How decided the answer is after i tokens: the expected largest class probability.",
    "layers": "The KL gap by layer: nats that a probe of this layer misses of the class distribution on held-out "
    "questions, the noise of finite M taken off. Lower is better; the grey band is what a perfect predictor would be "
    "measured to have. Below, where little of the mass is pooled, which the axis says, the share explained of the KL "
    "to the marginal.",
    "layers-positions": "The same at every position. The target is always the class distribution of all samples, even "
    "where an answer is already being written.",
    "rungs": "Rungs of the ladder and baselines at one layer, by KL gap. Those stopped early (generative, density, "
    "MLP, LoRA) learn from fewer of the training questions than linear and bilinear ones. A rung with a large gap "
    "cannot read the distribution there; this does not show that the model does not know it.",
    "learning": "KL gap of the generative rung by the number of questions that it learnt from, on the held-out "
    "questions of one fold. Where the curve still falls at its end, there are too few questions to say that the "
    "distribution cannot be learnt.",
    "commitment": "Above, how decided the answer is along the way; below, what probes miss by then of the class "
    "distribution of all samples (KL gap). Once an answer is being written, activations hold that answer rather than "
    "the distribution. The open mark is the mean place before the answering phrase.",
    "models": "For each model: accuracy, the signed gap, and the excess calibration error over calibrated models. "
    "The gap is by mass where log-probabilities are known. Bars are bootstrap intervals by group.",
    "predictability": "Is a model calibrated where its own class distribution is easy to predict? One mark per run: "
    "horizontally, the KL gap of the probe that the axis names, at the last prompt token; vertically, the calibration "
    "error in excess of calibrated models. The claim is about models trained by a proper loss (base, SFT): others are "
    "hollow and do not enter the line, which is fitted with errors in both directions. Runs that pool over 20 % of the "
    "mass are left out. Bars are bootstrap intervals by group.",
    "emergence": "The same two figures along training: does a small KL gap come before calibration?",
}
CAPTIONS["commitment-tokens"] = CAPTIONS["commitment"]
INTERVENTION = (
    "Dose and response, with every random control. What a probe reads is used by the model only if changing it does "
    "more than random changes of the same strength."
)
SECTIONS = {
    "unparsed": (
        "Unparsed answers",
        "The range of smECE over four readings of the answers that B could not parse (the top class, each its own, "
        "gold, one wrong answer as in the headline), and smECE and signed gap of the parsed answers alone, without the "
        "questions that have none (left out).",
    ),
    "finite_m": (
        "Finite M",
        "B-confidence by each estimator. The share of the most frequent class (plug-in) is too large at finite M; "
        "split-half (mode from one half, share in the other) is unbiased for the answer that half of the samples "
        "choose; masses come from log-probabilities, and the limit from the M-curve.",
    ),
    "m_curve": ("M-curve", "Random subsets of the samples, and the limit with its intervals."),
    "equivalence": (
        "Calibrated within",
        "The equivalence test: the smallest calibration error that can be ruled out (within), and whether delta can.",
    ),
    "loss_gap": (
        "Loss gap",
        "Log loss (nats per question) that the best tilt of the top class would recover on held-out questions; 0 where "
        "the model is locally loss-optimal.",
    ),
    "remedies": ("Remedies", "The confidence recalibrated by each method, on held-out questions."),
    "gates": (
        "Answering only when sure",
        "The lowest threshold on B-confidence at which, with probability 0.9 over the questions asked here, at most "
        "the risk of the answers given to questions to come is wrong, the share of questions answered and of these "
        "wrong here; no threshold where none is known to keep the risk. Other risks, and the confidence of probes: "
        "`semcal gate`.",
    ),
    "closed": (
        "Beyond the top class",
        "All classes at once: the kernel calibration error of the whole distribution (SKCE; its mean is 0 for a "
        "calibrated model), and smECE class by class.",
    ),
    "thresholds": (
        "Threshold of B",
        "The same samples under the same B at its own threshold and at half and twice its odds, which were fixed "
        "beforehand. Figures that move much with the threshold are statements about B, not about the model.",
    ),
    "chains": (
        "Before the answering phrase",
        "What the samples hold before the phrase that answers the question: distinct texts per question and as a share "
        "of the M samples, words (a run stores no character offsets of its tokens), and the share of samples in which "
        "there is such a phrase. A style is what was sampled: one text for all samples is no chain of thought.",
    ),
    "profile": ("Profile", "The same samples under other collapsing functions: what the model is calibrated about."),
    "probe_confidence": (
        "Probe confidence",
        "The confidence that probes of the last layer read before the first token, for one forward pass, next to that "
        "of the samples: a linear one of B-confidence, and one of the classes, linear or for open classes bilinear, "
        "whatever rungs the study has. AUROC: how well it separates right from wrong answers of the model. Read smECE "
        "together with accuracy.",
    ),
}
