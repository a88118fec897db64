"""The hypotheses and the rules that decide them, written down before any lineage was measured.

Knows p-values, estimates and intervals; knows no runs. `calibration_claims.py` and `mechanism_claims.py` say which
figures are computed from which runs.

In every study, alpha = 1 - `calibration.level`, and delta = `calibration.delta` is the smallest calibration error that
counts. Excess is smECE minus the mean of its calibrated twins. Confidence is by mass where every run has it, otherwise
shares of samples. Short styles are concise and sentence; preference-tuned stages are dpo, grpo, rl and instruct. A mean
over cells (model × dataset × style) weights each cell equally; its error is the grouped jackknife over the questions of
each dataset, so that what is hard for all runs cancels. All p-values are one-sided. The least loss is 2 delta² nats:
what a model with a calibration error of delta leaves to recover at least (Pinsker).

To be shown, every part of it, and what contradicts a part:

H1  for each base cell in a short style: its error < delta (equivalence test), contradicted by an excess > delta; its
    loss gap < that of a model off by delta (neither the fitted tilt nor those that would fix an even error of delta
    recover as much), contradicted by a loss gap > the least loss.
H2  in short styles, each tuned run under chat paired with its base model's few-shot run, means over cells: excess of
    preference-tuned > base's; their signed gap > base's; their excess > that of SFT (each of the three contradicted
    by a raise < delta); excess of SFT < base's + delta, contradicted by > base's + delta.
H2 same prompt  the same with the tuned models under the base's few-shot prompt: the effect of the weights alone.
H3  for base models, paired, mean over models and datasets: excess in cot > mean excess in short styles, contradicted by
    a raise < delta.
H4  over a whole grid of model × dataset × style, for the highest rung of the ladder that was fitted: predictability
    (share of its ceiling, last layer, last prompt token) is ranked against the excess, rho < 0; likewise what accuracy
    and mean entropy do not explain. Contradicted by rho > 0; never by rungs up to low-rank, whose failure refutes
    nothing.
H5  for base models in short styles: ablating what the probe reads raises the excess by more than ablating isotropic
    random subspaces does, and by more than variance-matched ones; contradicted by less.
H6  for each base cell in a short style: its loss gap as in H1; mean loss gap of preference-tuned cells in short styles
    under chat > that of its calibrated twins, contradicted if every one of them leaves no loss as in H1.

- Noise hides part of a small error, so excess understates it and smECE does not. Where a raise of delta is to be ruled
  out (contradictions of H2 and H3, the part of SFT), the floor is not subtracted from the run that may have it.
- The p-value of a hypothesis is the largest of its parts. To show all parts wrongly, one of them has to be shown
  wrongly, so each is tested at alpha, unadjusted (intersection-union test, Berger 1982).
- The p-value against it is the smallest of its parts' contradictions, after Holm over the parts.
- Both are adjusted by Holm over the hypotheses that were tested.
- holds: adjusted p <= alpha. Otherwise fails: adjusted p against <= alpha. Otherwise undecided, with the effect this
  study could have found. Not tested: there are no runs for it, or not for all of its parts.
- Among checkpoints of one stage of a lineage, the finished model, or else the last one, represents it; H4 takes all.
- A permutation of H4 shuffles whole models, whole datasets and whole styles; each weights enter under one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semcal.calibration.inference.paired import holm

Decision = Literal["holds", "fails", "undecided", "not tested"]

CLAIMS = {
    "H1": "Base models are calibrated in concise and sentence",
    "H2": "Preference and RL tuning raises calibration error, towards overconfidence; SFT does not",
    "H2 same prompt": "The same, the tuned models asked with the base model's few-shot prompt",
    "H3": "Chain-of-thought raises calibration error in base models",
    "H4": "Higher predictability goes with lower calibration error",
    "H5": "Removing what the probe reads harms calibration more than random subspaces do",
    "H6": "Base models leave no loss on the table, preference and RL tuned ones do",
}


@dataclass(frozen=True)
class Part:
    """One figure, and what it says about a hypothesis.

    Attributes:
        what: what the figure is of.
        unit: "excess smECE", "signed gap", "nats" or "rho".
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
class Finding:
    """What the runs say about a hypothesis of `CLAIMS`: every part is to be shown, `context` rows are not;
    `reason` says why it was not tested; `runs` are the labels of those it was tested on."""

    key: str
    parts: tuple[Part, ...] = ()
    context: tuple[Part, ...] = ()
    reason: str = ""
    runs: tuple[str, ...] = ()

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
    tested = [not f.reason for f in findings]
    # A part that could not be tested is not evidence, but it counts as one of the tests that were made.
    p = holm([_known(f.p) if t else np.nan for f, t in zip(findings, tested, strict=True)])
    against = holm([_known(f.p_against) if t else np.nan for f, t in zip(findings, tested, strict=True)])
    decisions: list[Decision] = [
        "not tested" if not made else "holds" if shown <= alpha else "fails" if contradicted <= alpha else "undecided"
        for made, shown, contradicted in zip(tested, p, against, strict=True)
    ]
    rows = zip(findings, decisions, p.tolist(), against.tolist(), strict=True)
    return [Verdict(*row) for row in rows]


def _known(p: float) -> float:
    return 1.0 if np.isnan(p) else p
