"""Files that are there whole or not at all: written under a temporary name and renamed. Knows nothing of runs."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from semcal.errors import UserError


def content_key(*parts: Any) -> str:
    """16 hexadecimal digits that change when any of the parts does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it. The file's mode follows the umask.

    Raises:
        UserError: the disk is full or the folder cannot be written; no half-written file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if complaint := _disk_error(path, error):
            raise complaint from error
        raise


def _disk_error(path: Path, error: BaseException) -> UserError | None:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return UserError(f"disk full while writing {path}; free some space and run the same command again")
    if code in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
        return UserError(f"cannot write {path} ({os.strerror(code)}); choose another output folder")
    return None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def plain(value: Any) -> Any:
    """The same value for JSON, which knows neither NaN nor numpy: an undefined figure becomes null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
