"""The folder of datasets' original files, $SEMCAL_DATA, which is looked in before the Hub is asked."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def in_data_folder(file: str) -> Path | None:
    """A file below $SEMCAL_DATA; None where the variable is not set or the file is not there."""
    folder = os.environ.get("SEMCAL_DATA")
    if not folder or not file or not (path := Path(folder).expanduser() / file).is_file():
        return None
    logger.info("%s is read from SEMCAL_DATA", path)
    return path


def found(path: str) -> Path:
    """A file as it is named or, if it is not there and the name is relative, below $SEMCAL_DATA."""
    named = Path(path)
    return named if named.exists() or named.is_absolute() else in_data_folder(path) or named
