"""The base of every part of a study: unknown keys are refused, values cannot be changed."""

import re

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def slug(text: str) -> str:
    """A text as a safe folder name."""
    return re.sub(r"[^\w.@=+-]+", "-", text).strip("-")
