"""Two runs on the same questions: is the class distribution of one more predictable than that of the other?

Knows held-out KL gaps; nothing of models. Both runs need the same questions in the same order, the same M and the same
seed of folds.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.evaluation.result import Evaluation
from semcal.arrays import FloatArray
from semcal.calibration.inference.paired import Difference, difference_of, holm, plain_mean
from semcal.calibration.resampling import Resampling

_KEYS = ["rung", "target", "layer"]


def compare_gaps(a: Evaluation, b: Evaluation, *, group: Sequence[str], resampling: Resampling) -> pd.DataFrame:
    """The difference b − a in the KL gap, one row for each rung, target and layer that both have.

    Interval and p-values are those of `gap_difference`; `p_holm` is adjusted over the rows.

    Args:
        a, b: of the same questions in the same order, drawn with the same M.
        group: [question].
        resampling: as in `paired_difference`.

    Returns:
        Columns rung, target, layer, a, b, difference, low, high (nats), p_value, p_holm, p_exchange, n.

    Raises:
        ValueError: different numbers of questions, or no common row with a gap.
    """
    places = [
        {tuple(row): gap.per_question for row, gap in zip(one.frame[_KEYS].to_numpy().tolist(), one.gaps, strict=False)}
        for one in (a, b)
    ]
    common = [key for key in places[0] if key in places[1]]
    if not common:
        raise ValueError(
            "the two evaluations have no KL gap of one rung, target and layer in common; evaluate both at the same ones"
        )
    rows = []
    for key in common:
        d = gap_difference(places[0][key], places[1][key], group=group, resampling=resampling)
        figures = {"a": d.a, "b": d.b, "difference": d.estimate, "low": d.low, "high": d.high}
        tests = {"p_value": d.p_value, "p_exchange": d.p_exchange, "n": len(group)}
        rows.append(dict(zip(_KEYS, key, strict=True)) | figures | tests)
    frame = pd.DataFrame(rows)
    frame.insert(frame.columns.get_loc("p_exchange"), "p_holm", holm(frame["p_value"]))  # pyright: ignore[reportArgumentType]
    return frame


def gap_difference(a: FloatArray, b: FloatArray, *, group: Sequence[str], resampling: Resampling) -> Difference:
    """The difference b − a of the KL gap of two runs, from gaps [question] of the same questions, nats.

    A gap of each question is noisy, but its error and that of the other run's are independent and unbiased as far as
    their entropies are; at equal M what remains of the entropy's bias is of one sign, and largely cancels where the
    distributions are alike. Interval and p-values are those of `paired_difference`: the same resampled groups for both
    runs, the probes not fitted again. `p_value` is of "the gaps are equal", `p_exchange` of "the runs are alike".

    Raises:
        ValueError: different numbers of questions.
    """
    if not len(a) == len(b) == len(group):
        raise ValueError(
            f"{len(a)} and {len(b)} questions and {len(group)} group labels; compare runs on the same questions"
        )
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return difference_of(plain_mean, (first, first, second, second), group=list(group), resampling=resampling)
