"""Whether the Hub has a model, asked before anything is made for it."""

from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    HTTPError,  # of the HTTP library that it uses  # pyright: ignore[reportPrivateImportUsage]
    RevisionNotFoundError,
)

from semcal.errors import UserError

TIMEOUT = 5.0  # seconds


def check_reachable(path: str, revision: str | None = None) -> None:
    """Check that a model is a local folder, in the cache of the Hub, or on the Hub; one request at most.

    Raises:
        UserError: it is none of these, or the Hub does not answer.
    """
    if Path(path).exists() or isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(path, revision=revision, timeout=TIMEOUT)
    except RevisionNotFoundError as error:
        raise UserError(
            f"{path} has no revision {revision!r} on the Hub; leave revision out or name a branch, tag or commit"
        ) from error
    except (HTTPError, OSError) as error:
        where = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"cannot load {path}{where}: it is not a local folder, and the Hub cannot be reached or does not have it; "
            "check its name and the network, or download it"
        ) from error
