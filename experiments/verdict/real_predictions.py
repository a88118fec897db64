"""The paper's three predictions on two real models that are no lineage, and the rule that decides them, written before
the study `real` was run.

Which cells count: those of which at most MOST_UNPARSED of the samples are unparsed or truncated and LEAST_RIGHT
to 1 - LEAST_RIGHT of the questions are answered correctly. A model that is never right is calibrated if it is never
confident, which says nothing of whether it knows what it knows. Cells left out are named, with the reason. Confidence,
smECE, excess, delta, level and the tests are those of `rules.py`.

1  base models are calibrated: H1, on the base model's concise and sentence cells.
2  tuned models are not: on the tuned model's concise and sentence cells under chat, the mean excess is > 0, of smECE
   less the mean of calibrated twins, and so is the mean signed gap (the paper: overconfident in every style).
   Contradicted if the mean smECE error is < delta by the test of H1.
3  chain-of-thought breaks it: H3, on the base model's cells of the study `real-cot`.

Each is said to hold, to fail or to be undecided as a hypothesis is (Holm over the three), and is not tested where no
cell counts. Nor is it decided before every cell that the two studies ask for has been measured, whatever those that are
there say: who looks after each cell finds something by chance. Two models are no sample of models: all intervals are
over questions. Differences between the two models are shown and not tested: they differ in size, training text and
prompt as well as in tuning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.verdict.calibration_claims import (
    PREFERENCE,
    SHORT,
    Law,
    above,
    base_calibrated,
    cell_row,
    counted,
    error,
    excess,
    gap,
    labels,
    of_stage,
    p_of_mean_error,
    thinking_harms,
)
from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import MOST_UNPARSED, Finding, Verdict, decide

LEAST_RIGHT = 0.02
PREDICTIONS = {
    "H1": "1. Base models are semantically calibrated",
    "H2": "2. Tuned models are not",
    "H3": "3. Chain-of-thought breaks the calibration of a base model",
}


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        verdicts: One a prediction, in their order.
        left_out: Label of a run, in parentheses its study if that is `real-cot`, and why it counts for none.
    """

    verdicts: tuple[Verdict, ...]
    left_out: tuple[tuple[str, str], ...]


def predictions(
    short: Sequence[Measured], thinking: Sequence[Measured], law: Law, unmeasured: Mapping[str, int] | None = None
) -> Predictions:
    """The three predictions.

    Args:
        short: Runs of the study `real`.
        thinking: Runs of the study `real-cot`.
        unmeasured: Key of a prediction -> number of its cells that have not been measured yet.
    """
    named = [*((r.label, r) for r in short), *((f"{r.label} (real-cot)", r) for r in thinking)]
    left_out = tuple((label, why) for label, run in named if (why := why_left_out(run)))
    kept, kept_thinking = ([r for r in runs if not why_left_out(r)] for runs in (short, thinking))
    found = (base_calibrated(kept, law), tuned_miscalibrated(kept, law), thinking_harms(kept_thinking, law))
    findings = [_unfinished(finding, (unmeasured or {}).get(finding.key, 0)) for finding in found]
    return Predictions(tuple(decide(findings, law.alpha)), left_out)


def _unfinished(finding: Finding, unmeasured: int) -> Finding:
    if not unmeasured:
        return finding
    left = f"{counted(unmeasured, 'cell')} not measured yet"
    return replace(finding, reason=left) if finding.reason else replace(finding, undecidable=left)


def why_left_out(run: Measured) -> str:
    """Why a run counts for no prediction; "" if it does."""
    accuracy = float(np.mean(run.correct))
    if run.truncated > MOST_UNPARSED:
        return f"{run.truncated:.0%} of the samples are truncated"
    if run.unparsed_share > MOST_UNPARSED:
        return f"{run.unparsed_share:.0%} of the samples are unparsed"
    if not LEAST_RIGHT <= accuracy <= 1 - LEAST_RIGHT:
        return f"{accuracy:.1%} of the questions are answered correctly"
    return ""


def tuned_miscalibrated(runs: Sequence[Measured], law: Law) -> Finding:
    """Prediction 2."""
    tuned = [r for r in of_stage(runs, PREFERENCE, SHORT) if r.prompt == "chat"]
    if not tuned:
        return Finding("H2", reason="no run of a tuned model under chat counts")
    share = 1 / len(tuned)
    raised, surer = [(share, excess(r)) for r in tuned], [(share, gap(r)) for r in tuned]
    raw = [(share, error(r)) for r in tuned]
    what = f"tuned, mean of {len(tuned)} cells"
    off = replace(above(what, "excess smECE", raised, raw, raw, law), p_against=p_of_mean_error(tuned, law))
    over = replace(above(what, "signed gap", surer, surer, surer, law), p_against=float("nan"))
    cells = tuple(cell_row(r, law) for r in tuned)
    return Finding("H2", (off, over), runs=labels(tuned), cells=cells)
