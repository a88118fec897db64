"""semcal: is a language model's confidence in what it means earned, and does it know it before it speaks?

The names below are what a notebook needs, from a question to "calibrated or not". Each is imported when it is first
used: torch takes seconds, and `import semcal` none.
"""

import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from semcal.errors import UserError, above, check_packages

if TYPE_CHECKING:
    from collections.abc import Callable

    from semcal import calibration
    from semcal.answers import sample
    from semcal.calibration.summary import calibrate
    from semcal.models.checkpoint import LanguageModel
    from semcal.questions.load_dataset import load_dataset
    from semcal.questions.question import Question
    from semcal.runs.run import Run
    from semcal.semantics.collapse_answers import collapse

    run_study: Callable[..., list[Run]]

_HOMES = {
    "LanguageModel": "semcal.models.checkpoint",
    "Question": "semcal.questions.question",
    "Run": "semcal.runs.run",
    "calibrate": "semcal.calibration.summary",
    "collapse": "semcal.semantics.collapse_answers",
    "load_dataset": "semcal.questions.load_dataset",
    "run_study": "experiments.pipeline.study_runs",  # a study is run by the package above; see `above`
    "sample": "semcal.answers",
}
__all__ = [
    "LanguageModel",
    "Question",
    "Run",
    "UserError",
    "calibrate",
    "calibration",
    "collapse",
    "load_dataset",
    "run_study",
    "sample",
]

try:
    __version__ = version("semcal")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "unknown"

try:
    check_packages()
except UserError as error:  # `from probes import ...` is about to fail without saying why
    warnings.warn(str(error), stacklevel=2)


def __getattr__(name: str) -> Any:
    if name == "calibration":
        return import_module("semcal.calibration")
    if name not in _HOMES:
        raise AttributeError(f"module 'semcal' has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(home) if home.startswith("semcal.") else above(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
