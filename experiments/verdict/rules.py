"""The hypotheses and the rules that decide them, written down before what they decide is measured.

Knows p-values, estimates and intervals; knows no runs. `calibration_claims.py` and `mechanism_claims.py` say which
figures are computed from which runs; `testable.py` says which hypotheses a study can test at all.

What was changed after something had been seen: H5's steps of training, accuracy by lineage and judgement by contrast
after a first trial on 400 questions; the arms, their world and the number of questions, but no rule, after nine arms
had been measured and none had moved the gap, and again after a look at two of the next ones (docs/training.md); H4's
"any of these probes" for a small gap after the gaps of the demo were known. The error of H4's slope, its checkpoints
and the dates of falling curves were changed after an audit by simulation, when no study of arms, of graded difficulty
or along training had been measured. The generative rung learns longer since three seeds of the arms had been
measured, because nearly all its trainings had ended at the last of the epochs that they were allowed.

In every study, alpha = 1 - `calibration.level`, and delta = `calibration.delta` is the smallest calibration error that
counts. Excess is smECE minus the mean of its calibrated twins. Confidence is by mass where every run has it, otherwise
shares of samples: one estimator for both sides of every pair. Short styles are concise and sentence; preference-tuned
stages are dpo, grpo, rl and instruct. A mean over cells (model × dataset × style) weights each cell equally; its error
is the grouped jackknife over the questions of each dataset, so that what is hard for all runs cancels. All p-values are
one-sided.

To be shown, every part of it, and what contradicts a part:

H1  base models, short styles, datasets in distribution: the mean smECE error over cells < delta. Shown if both (a) the
    mean smECE, taken from what a calibrated model would be right at this M, is smaller than that of models which are
    all off by delta in the same direction (two one-sided tests by simulation; cells of one dataset share their luck,
    so that the mean varies most), and (b), with two models or more, a t test over model means of smECE says "< delta",
    models being a sample. Contradicted by a mean excess >
    delta, with an error by questions and models. Listed beside it, untested: the share of cells within delta by their
    own equivalence test and the number certainly above (Holm), and every cell with its smECE, excess, debiased binned
    error and loss gap. "Every cell" is not claimed: on a grid of 180 cells with power 0.8 each it could never hold.
    smECE is what is tested: an error that oscillates over confidence within its bandwidth escapes it, and is seen in
    the debiased binned error.
H2  in short styles, each tuned run under chat paired with its base model's few-shot run, means over cells: excess of
    preference-tuned > base's; their signed gap > base's; their excess > that of SFT (each of the three contradicted
    by a raise < delta); a raise is shown of the excess and of smECE alike; excess of SFT < base's + delta, contradicted
    by > base's + delta.
H2 same prompt  the same with the tuned models under the base's few-shot prompt: the effect of the weights alone.
H3  for base models on datasets in distribution, paired, mean over models and datasets: excess in cot > mean excess in
    short styles, and the same of smECE; contradicted by a raise < delta; errors by questions and models.
H4  base and SFT models on datasets in distribution: small KL gap implies calibrated. The KL gap is the mean, in nats,
    of the held-out cross-entropy of the model's class distribution and what a probe predicts, minus the entropy of that
    distribution, with the bias of finite M taken off, and at least 0. The probe is the first of generative LoRA, LoRA
    on closed classes, bilinear and linear that every cell has; one fitted at several layers is read at the layer that
    does best on one half of the groups, measured on the other half, and the reverse. A gap is small if its one-sided
    upper bound is below SMALL_GAP, by any of these probes, at alpha over their number: each bounds from above what a
    best predictor misses. Shown if the mean error of cells with a small gap is < delta as in H1 (a) and none of them
    has an excess certainly above delta (Holm), and the slope of excess on gap, with errors in both, is > 0. Its error
    is by places (a dataset, asked in a style of models trained alike, whose error and gap every lineage repeats) and by
    lineages where there are three or more, added as in two-way clustering; fewer than three places, or checkpoints of
    fewer than three lineages, which drift together, show no slope. Beside it, untested: the slope among the cells of
    one style, of one style on one kind of dataset, and of all checkpoints that can write. Contradicted by a cell with a
    small gap and an excess certainly above delta. Where more than MOST_POOLED of the mass lies in the pooled
    class of a closed target, the gap of its probes says how much is pooled; such a cell needs a rung over open classes,
    or is left out.
H5  base models of one lineage (a training seed) that were trained alike but for one thing (`arm`), in cot. Contrasts:
    every other arm less the arm `direct`, mean over lineages and datasets; and, within `direct`, datasets on which the
    end of a chain cannot be computed in one pass less those on which it can (HARDER, trained on alike). A contrast
    moves the gap if the mean raise of the KL gap, on the first rung as in H4 that every cell has, is > 0 by a test and
    at least SMALL_GAP. Its accuracy is alike if it differs by at most ALIKE in every lineage. Of the contrasts that
    move the gap at like accuracy, have three lineages, and no cell of which too much is unparsed, each is to be shown:
    excess raised, and smECE alike; contradicted by a raise < delta. Errors by questions and lineages. Cannot be decided
    where there is no such contrast. Ablating activations (`semcal intervene`) describes a model and says nothing of the
    mechanism: a log-linear model that is calibrated by construction "holds" or "fails" by the rank of the ablation
    alone.
H6  base models as in H1: the mean over cells of the loss gap is below that of a model off by delta (neither the fitted
    tilts nor those that would fix an even error of delta recover as much); contradicted by the error alone, as H1,
    since a loss gap above 2 delta² does not imply an error above delta. Mean loss gap of preference-tuned cells in
    short styles under chat > that of their calibrated twins, contradicted if their mean error is < delta as in H1 (a).

- Datasets that are not in distribution (`in_distribution: false`) are left out of H1, H3, H4 and H6, whose theory
  predicts failure there, and are shown in rows of their own.
- If more than MOST_UNPARSED of the samples of a cell that a hypothesis needs are unparsed or truncated, it cannot be
  decided: what those answers would have been decides it. Every smECE comes with its range over four readings of the
  unparsed answers and with the figure of parsed answers alone.
- A cot run whose chains are all alike is not one: what needs it cannot be decided.
- Noise hides part of a small error, so excess understates it and smECE does not. Of two runs with one error, the
  surer, whose floor is lower, has the larger excess and the smaller smECE, so a raise has to be shown of both. Where a
  raise of delta is to be ruled out (contradictions of H2 and H3, the part of SFT), the floor is not subtracted from the
  run that may have it.
- The p-value of a hypothesis is the largest of its parts. To show all parts wrongly, one of them has to be shown
  wrongly, so each is tested at alpha, unadjusted (intersection-union test, Berger 1982).
- The p-value against it is the smallest of its parts' contradictions, after Holm over the parts.
- Both are adjusted by Holm over the hypotheses that were tested.
- holds: adjusted p <= alpha. Otherwise fails: adjusted p against <= alpha. Otherwise undecided, with the effect this
  study could have found. Not tested: there are no runs for it, or not for all of its parts.
- Among checkpoints of one stage of a lineage, the finished model, or else the last one, represents it: the theory is
  about what training ends in, and an untrained model answers the same to everything, which is easy to predict and not
  calibrated. `lag_claims.py` says beside H4 whether the KL gap falls before the error does, which decides nothing.
- Errors by questions and models add the variance of model means to that by questions, which is in it already: they err
  on the large side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semcal.calibration.inference.paired import holm

MOST_UNPARSED = 0.05  # share of a cell's samples that may be unparsed, or truncated
SMALL_GAP = 0.1  # nats: a class distribution with a KL gap below it is easily predictable
ALIKE = 0.05  # accuracies that differ by no more are alike

Decision = Literal["holds", "fails", "undecided", "cannot be decided", "not tested"]

CLAIMS = {
    "H1": "Base models are calibrated on average in concise and sentence",
    "H2": "Preference and RL tuning raises calibration error, towards overconfidence; SFT does not",
    "H2 same prompt": "The same, the tuned models asked with the base model's few-shot prompt",
    "H3": "Chain-of-thought raises calibration error in base models",
    "H4": "Where the class distribution is easy to predict, a model is calibrated",
    "H5": "Changing in training what can be predicted changes calibration",
    "H6": "Base models leave no loss on the table, preference and RL tuned ones do",
}


@dataclass(frozen=True)
class Part:
    """One figure, and what it says about a hypothesis.

    Attributes:
        what: what the figure is of.
        unit: "smECE", "excess smECE", "signed gap", "nats", "share of cells" or "per nat".
        estimate, low, high: with its interval.
        shown: what is to be shown, e.g. "> 0"; "" for a row that is only context.
        p: one-sided, of the opposite of what is to be shown; NaN where it could not be tested.
        p_against: one-sided; a small value contradicts it; NaN where nothing could.
        reach: what this study could have found: the smallest true effect with power 0.8, or the smallest error that can
            be ruled out.
    """

    what: str
    unit: str
    estimate: float
    low: float
    high: float
    shown: str = ""
    p: float = float("nan")
    p_against: float = float("nan")
    reach: float = float("nan")


@dataclass(frozen=True)
class CellRow:
    """The figures of one run behind a hypothesis, untested but for `within`.

    Attributes:
        label: of the run.
        smece, excess, low, high: with the interval of the excess.
        within: p-value of its own equivalence test, NaN where it was not made.
        above: p-value of "its excess is at most delta".
        binned: debiased binned error, which sees errors that oscillate over confidence.
        loss: its loss gap, nats; NaN where there is none.
        seen: mean probability of the distinct answers seen, which differs with wording; NaN where unknown.
        truncated, unparsed: shares of its samples.
        least, most: range of smECE over the readings of unparsed answers.
        parsed_only: smECE of the parsed answers.
        left_out: questions without a parsed answer, which `parsed_only` leaves out.
    """

    label: str
    smece: float
    excess: float
    low: float
    high: float
    within: float
    above: float
    binned: float
    loss: float
    seen: float
    truncated: float
    unparsed: float
    least: float
    most: float
    parsed_only: float
    left_out: int


@dataclass(frozen=True)
class Finding:
    """What the runs say about a hypothesis of `CLAIMS`.

    Attributes:
        parts: each is to be shown.
        context: rows that are not tested.
        reason: why it was not tested.
        undecidable: why the runs cannot decide it, although there are some; names a cell and the remedy.
        runs: labels of those it was tested on.
        cells: the figures of each run whose smECE entered.
    """

    key: str
    parts: tuple[Part, ...] = ()
    context: tuple[Part, ...] = ()
    reason: str = ""
    undecidable: str = ""
    runs: tuple[str, ...] = ()
    cells: tuple[CellRow, ...] = ()

    @property
    def p(self) -> float:
        """Of "not all parts are true"; NaN where a part could not be tested."""
        return float(max((part.p for part in self.parts), default=np.nan, key=lambda p: (np.isnan(p), p)))

    @property
    def p_against(self) -> float:
        """Of "no part is contradicted"."""
        known = holm([part.p_against for part in self.parts])
        return float(np.nanmin(known)) if np.isfinite(known).any() else float("nan")


@dataclass(frozen=True)
class Verdict:
    """A finding, decided by the rules at the top of this file; p-values are adjusted over the hypotheses tested."""

    finding: Finding
    decision: Decision
    p_holm: float
    p_against_holm: float


def decide(findings: Sequence[Finding], alpha: float) -> list[Verdict]:
    """Every finding by the rules at the top of this file."""
    tested = [not (f.reason or f.undecidable) for f in findings]
    # A part that could not be tested is not evidence, but it counts as one of the tests that were made.
    p = holm([_known(f.p) if t else np.nan for f, t in zip(findings, tested, strict=True)])
    against = holm([_known(f.p_against) if t else np.nan for f, t in zip(findings, tested, strict=True)])
    rows = zip(findings, p.tolist(), against.tolist(), strict=True)
    return [
        Verdict(f, _decision(f, shown, contradicted, alpha), shown, contradicted) for f, shown, contradicted in rows
    ]


def _decision(finding: Finding, p: float, against: float, alpha: float) -> Decision:
    if finding.reason:
        return "not tested"
    if finding.undecidable:
        return "cannot be decided"
    return "holds" if p <= alpha else "fails" if against <= alpha else "undecided"


def _known(p: float) -> float:
    return 1.0 if np.isnan(p) else p
