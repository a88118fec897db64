"""The Python that has vLLM, and the environment in which its process runs.

vLLM pins other versions of torch and transformers than semcal, so it lives in an environment of its own.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from semcal.errors import UserError

PYTHON = "SEMCAL_VLLM_PYTHON"  # names the interpreter of an environment that has vLLM
TESTED = ("0.32", "0.32")  # the first and the last minor version of vLLM that `make test-vllm` was run with
_REMEDY = "make one by `python -m venv vllm; vllm/bin/pip install vllm` (docs/engines.md) and name its bin/python"


def vllm_python(named: str | None = None) -> Path:
    """The interpreter of vLLM's environment: `named`, or that of SEMCAL_VLLM_PYTHON, or this one if it has vLLM.

    Raises:
        UserError: none is named, or there is none.
    """
    where, path = ("python", named) if named else (PYTHON, os.environ.get(PYTHON))
    if not path:
        if find_spec("vllm") is not None:
            return Path(sys.executable)
        raise UserError(
            f"engine vllm needs an environment with vLLM, and none is named by `python` of the model or by {PYTHON}; "
            f"{_REMEDY}"
        )
    found = Path(path).expanduser()
    if not found.is_file() or not os.access(found, os.X_OK):
        raise UserError(f"{where} is {path}, which is no program; {_REMEDY}")
    return found.absolute()  # not resolved: the link lies in the environment, and its target does not


def environment_of(python: Path, device: str, threads: int) -> dict[str, str]:
    """The variables of vLLM's process: nothing is reported or downloaded behind the back of a study.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto" or "balanced" for all that there is.
        threads: Number of threads, on a CPU; vLLM would take all cores but one, and bind them.
    """
    env = os.environ | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    env.pop("PYTHONPATH", None)
    if device.startswith("cuda:"):
        return env | {"CUDA_VISIBLE_DEVICES": device.partition(":")[2]}
    if device not in ("cpu", "auto"):
        return env
    env |= {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    env |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    openmp = python.parent.parent / "lib" / "libiomp5.so"  # which vLLM's manual asks for
    return env | {"LD_PRELOAD": str(openmp)} if openmp.exists() else env


def beyond_tested(version: str) -> str:
    """What to say of a version of vLLM that was never tried; "" for one that was."""
    minor = version.split("+")[0].split(".")[:2]
    if all(part.isdigit() for part in minor):
        first, last = (tuple(map(int, bound.split("."))) for bound in TESTED)
        if first <= tuple(map(int, minor)) <= last:
            return ""
    tested = TESTED[0] if TESTED[0] == TESTED[1] else f"{TESTED[0]} to {TESTED[1]}"
    return f"vLLM {version} is not a tested version ({tested} is); its answers and activations are compared first"
