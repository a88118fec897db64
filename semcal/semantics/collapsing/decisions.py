"""A judge's earlier decisions on disk: one line of JSON each, looked up by content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from semcal.errors import UserError


class Decisions:
    """Decisions by key. Earlier ones are read at the start; new ones are appended at once.

    A line that a crash left incomplete is skipped. Two processes may append to one file: each line is one write.

    Args:
        path: The file; created, with its folders, for the first decision.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"cannot read decisions from {path} ({error.strerror}); set another cache") from error
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
        """The decision; None if there is none."""
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
            raise UserError(f"cannot write decisions to {self.path} ({error.strerror}); set another cache") from error
        self._torn = False


def decision_key(*parts: object) -> str:
    """A key that depends only on the content of its parts."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
