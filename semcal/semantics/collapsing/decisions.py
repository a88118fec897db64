"""What was decided before, on disk: a line of JSON a decision, found again by its content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from semcal.errors import UserError


class Decisions:
    """Decisions by key; those of earlier passes are read at the start, new ones appended at once.

    A line that a crash tore is passed over. Two processes may append to one file: each line is one write.

    Args:
        path: The file; made with its folders when the first decision falls.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"cannot read the decisions in {path} ({error.strerror}); name another cache") from error
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> Any:
        """What was decided, None where nothing was."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> None:
        """Remember a decision.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        self._known[key] = value
        line = ("\n" if self._torn else "") + json.dumps({"key": key, "value": value}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot keep decisions in {self.path} ({error.strerror}); name another cache") from error
        self._torn = False


def decision_key(*parts: object) -> str:
    """The same for the same content, whatever machine or day it is."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
