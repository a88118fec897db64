"""How often a faithful server is accused of settings that it does not have, and how often those it has are found.

Simulated servers state the likeliest tokens of planted laws twice, rounded anew each time. Half of the tokens that
an answer draws are common to all places, so that some occur again.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from semcal.arrays import FloatArray
from semcal.models.dialects import TOP
from semcal.models.restatement import Comparison, Difference
from semcal.sampling.checks import FAILED
from semcal.seeds import keyed_generator

ANSWERS, TOKENS, VOCABULARY = 12, 16, 200
# Standard deviation of a logit, in nats, by which two requests differ. Measured on SmolLM2-135M, two kernels differ by
# about half of what one more rounding does: 0.05 in bfloat16, 0.12 where one of 16 activations is rounded to fp8 anew.
ROUNDING = {"float32": 1e-4, "bfloat16": 0.05, "fp8": 0.12}
Settings = Callable[[FloatArray, FloatArray], FloatArray]  # logits, and how often each token occurred: logits


def presence(logits: FloatArray, occurred: FloatArray, penalty: float = 0.5) -> FloatArray:
    return logits - penalty * (occurred > 0)


def repetition(logits: FloatArray, occurred: FloatArray, penalty: float = 1.05) -> FloatArray:
    """As transformers and vLLM apply it: logits above 0 are divided, others multiplied."""
    return np.where(occurred > 0, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def temperature(logits: FloatArray, _: FloatArray, value: float = 0.7) -> FloatArray:
    return logits / value


def accused(rounding: float, settings: Settings, study: int) -> bool:
    """Whether a server with these settings is refused after ANSWERS answers were compared with scored text."""
    rng = keyed_generator(study, "restatement")
    common = rng.gumbel(scale=2.0, size=VOCABULARY) + 14  # logits of a model are about 10 to 30
    found = Comparison("", "")
    for _ in range(ANSWERS):
        occurred, places = np.zeros(VOCABULARY), []
        for _ in range(TOKENS):
            logits = common + rng.normal(scale=2.0, size=VOCABULARY)
            rounded = [logits + rng.normal(scale=rounding, size=VOCABULARY) for _ in range(2)]
            drawn_from = settings(rounded[0], occurred)
            stated, again = _stated(drawn_from), _stated(rounded[1])
            places.append(Difference.of(stated, again, {str(i) for i in np.flatnonzero(occurred)}))
            occurred[rng.choice(VOCABULARY, p=_law(drawn_from))] += 1
        found.add(places)
    return found.check().outcome == FAILED


def restatement_cases() -> Iterator[tuple[str, Callable[[int], bool], bool]]:
    """Name, what may happen in a study, and whether it is an error."""
    for dtype, rounding in ROUNDING.items():
        faithful = partial(accused, rounding, lambda logits, _: logits)
        yield f"server in {dtype}, no settings: refused", faithful, True
    for name, settings in (
        ("presence penalty 0.5", presence),
        ("repetition penalty 1.05", repetition),
        ("temperature 0.7", temperature),
    ):
        for dtype, rounding in ROUNDING.items():
            yield f"server in {dtype}, {name}: refused", partial(accused, rounding, settings), False


def _law(logits: FloatArray) -> FloatArray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _stated(logits: FloatArray) -> dict[str, float]:
    law = _law(logits)
    return {str(i): float(np.log(law[i])) for i in np.argsort(-law)[:TOP] if law[i] > 0}
