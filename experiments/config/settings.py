"""The base of everything a study can say: unknown keys are refused, values do not change."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def slug(text: str) -> str:
    """A name that is safe as a folder name."""
    return re.sub(r"[^\w.@=+-]+", "-", text).strip("-")
