"""Two runs on the same questions: is the class distribution of one more predictable than that of the other?

Knows held-out KL gaps; nothing of models. Both runs need the same questions in the same order, the same M and the same
seed of folds.
"""

from collections.abc import Sequence

import numpy as np

from semcal.arrays import FloatArray
from semcal.calibration.inference.paired import Difference, difference_of, plain_mean
from semcal.calibration.resampling import Resampling


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
