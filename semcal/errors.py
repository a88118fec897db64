"""The two kinds of failure that a user meets, something to fix and a model that broke; and packages that are hidden."""

import difflib
import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_HOME = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """Something the user can fix; the message is one line that says what is wrong and what to do.

    >>> try:
    ...     semcal.load_dataset("gsm8")
    ... except semcal.UserError as error:
    ...     print(str(error).partition(";")[0])
    no dataset 'gsm8', did you mean 'gsm8k'?
    """


class NonFiniteError(UserError):
    """A model produced NaN or infinity."""


class NotFromModelError(UserError):
    """A server answers by another distribution than the model's own."""


def nearest(name: str, known: Iterable[object]) -> str:
    """', did you mean X?' where a known name is close to `name`, '' otherwise."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def in_short(error: Exception) -> str:
    """The kind of an error and its first sentence, whole."""
    text = " ".join(str(error).split())
    sentence = text.partition(". ")[0]
    return f"{type(error).__name__}: {sentence if len(sentence) <= 200 else sentence[:200].rpartition(' ')[0] + ' …'}"


def check_packages() -> None:
    """Check that `probes` and `experiments` are the packages that came with this one.

    Raises:
        UserError: a folder or file of the user's hides one of them, or one is not installed.
    """
    for name in ("probes", "experiments"):
        spec = find_spec(name)
        if spec is None:
            raise UserError(f"package {name!r} is not installed; install semcal again")
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        found = Path(places[0]).resolve()
        if not found.is_relative_to(_HOME / name):
            folder = found.parent if found.name == "__init__.py" else found
            raise UserError(f"{folder} hides semcal's package {name!r}; rename it, or run from another folder")


def above(module: str) -> ModuleType:
    """A module of `probes` or `experiments` by name.

    Imports run experiments → probes → semcal, so semcal itself never imports these packages. The public names that
    need them (`run_study`, the bundled atlas) look them up here, when they are used.

    Raises:
        UserError: as `check_packages`.
    """
    check_packages()
    return importlib.import_module(module)
