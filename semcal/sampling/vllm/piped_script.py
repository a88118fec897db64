"""A script under another interpreter that is asked over its standard input and answers by lines of JSON."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from semcal.errors import UserError

_PATIENCE_S = 10  # for a process that was asked to end
_SIGNS = ("Error", "error:", "Killed")


class Ended(UserError):
    """The script ended by itself.

    Attributes:
        killed: Whether a signal ended it, as where the machine is out of memory.
    """

    def __init__(self, said: str, *, killed: bool) -> None:
        super().__init__(f"vLLM ended by itself ({said})")
        self.killed = killed


class PipedScript:
    """A running script; use it in a `with`, which ends it and its children.

    Args:
        python: The interpreter.
        script: A file that imports nothing of semcal's.
        begin: Its first line of input.
        env: Its environment variables.
    """

    def __init__(self, python: Path, script: Path, begin: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        # In a session of its own, so that Ctrl-C in a terminal reaches this process alone, which ends the other.
        self._process = subprocess.Popen(
            [str(python), "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=dict(env),
            start_new_session=True,
        )
        self._cpu_seconds = 0.0
        self.tell(begin)

    def __enter__(self) -> PipedScript:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one message; a script that has ended says why when it is heard."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Ended: there is none.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = 0
        raise Ended(self._last_words(code), killed=code < 0)

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and its children, which do the work."""
        root = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        self._cpu_seconds = sum(t.user + t.system for t in times)
        return self._cpu_seconds

    def last_cpu_seconds(self) -> float:
        """The same; as last known where the process has ended."""
        try:
            return self.cpu_seconds()
        except psutil.Error:
            return self._cpu_seconds

    def close(self) -> None:
        """End the process and its children."""
        try:
            tree = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            tree = []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.kill()  # it holds nothing that is not on disk
        self._process.wait()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.stdout.close()
        self._said.close()

    def _last_words(self, code: int) -> str:
        self._said.seek(0)
        words = [text.strip() for text in self._said if text.strip()]
        errors = [text for text in words if any(sign in text for sign in _SIGNS)]
        if code < 0 and not errors:
            return f"killed by signal {-code}"
        return (errors or words or ["it said nothing"])[-1].removeprefix("[rank0]: ")[-200:]
