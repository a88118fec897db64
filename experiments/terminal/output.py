"""How every command prints: tables and text on stdout, or one JSON document; remarks, progress and errors on stderr.

Knows no command; imports nothing slow.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from semcal.errors import UserError

if TYPE_CHECKING:
    from experiments.pipeline.progress import Screen

# In a pipe or a log tables need not fit into 80 columns.
WIDE = 140

complaints = Console(stderr=True, soft_wrap=True, highlight=False)


def animated(console: Console) -> bool:
    """Whether something may move there: a terminal that knows how to."""
    return console.is_terminal and not console.is_dumb_terminal


@dataclass
class Output:
    """What a command prints, and the document that `--json` prints in its place.

    Attributes:
        quiet: Neither progress nor explanations.
        verbose: Log messages too, and the traceback of an error.
        document: What `--json` prints at the end.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    document: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def console(self) -> Console:
        """Stdout; silent where a document is printed instead."""
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
        return Console(width=wide, quiet=self.as_json)

    def show(self, table: RenderableType) -> None:
        """A table, fitted to the terminal."""
        if not self.as_json:
            self.console.print(table)

    def rule(self, title: str = "") -> None:
        """A line above a part of the results."""
        if not self.as_json:
            self.console.rule(Text(title))

    def say(self, text: str, style: str | None = None) -> None:
        """A line of results: wrapped between words in a terminal, left whole in a pipe."""
        whole = not self.console.is_terminal
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=whole)

    def explain(self, text: str) -> None:
        """What figures mean, in words."""
        if not self.quiet:
            self.say(text)

    def remark(self, text: str, of: str = "") -> None:
        """A caveat about results."""
        if self.quiet:
            return
        if of:
            self.console.print(f"{of}: ", style="yellow", end="", markup=False, highlight=False, soft_wrap=True)
        self.say(text, style=None if of else "yellow")

    def written(self, paths: Iterable[Path]) -> None:
        """Files and folders that were written: never cut or folded, so that they can be pasted."""
        for path in paths:
            self.append("written", str(path))
            if not self.quiet:
                self.verbatim(f"written: {path}")

    def left_out(self, reasons: Iterable[str]) -> None:
        """What the user named and was not used, and why."""
        for reason in reasons:
            self.append("left_out", reason)
            self.verbatim(f"left out: {reason}", style="yellow")

    def unsynced(self, folders: Iterable[Path]) -> None:
        """The command that sends what W&B does not have yet of what lies in these folders."""
        from experiments.pipeline.tracking.session import sync_line

        if line := sync_line(folders):
            self.tell(f"not sent to W&B yet: {line}")

    def hint(self, *commands: str) -> None:
        """What can be typed next, to be pasted as it is."""
        for command in commands:
            self.tell(f"next: {command}", style="dim")

    def tell(self, text: str, style: str | None = None) -> None:
        """A line on stderr, about work to come or under way."""
        if not self.quiet:
            complaints.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def verbatim(self, text: str, style: str | None = None) -> None:
        """A line that may be pasted: never cut or folded."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    # ---- while it works ----------------------------------------------------------------------------------------------

    def screen(self, cells: int = 0) -> Screen:
        """Progress over so many cells."""
        from experiments.pipeline.progress import Screen

        return Screen(cells, quiet=self.quiet)

    def status(self, text: str) -> AbstractContextManager[Any]:
        """A line that moves while something short is done; it has `update`."""
        return complaints.status(text) if animated(complaints) and not self.quiet else nullcontext(_Still())

    # ---- the document ------------------------------------------------------------------------------------------------

    def record(self, **values: Any) -> None:
        """Set keys of the document."""
        self.document |= values

    def append(self, key: str, *values: Any) -> None:
        """Add to a list of the document."""
        self.document.setdefault(key, []).extend(values)

    def finish(self) -> None:
        """Print the document, if one is asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(_plain(self.document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()


class _Still:
    """A status where nothing may move."""

    def update(self, _: str) -> None: ...


_current: ContextVar[Output] = ContextVar("output")


def output() -> Output:
    """That of the command that is running."""
    return _current.get(Output())


def _shared(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log messages; tracebacks of errors.")] = False,
) -> None:
    """The options that every command has."""
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other; leave one of them out")
    chosen = Output(json, quiet, verbose)
    _current.set(chosen)
    logging.getLogger().setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of `app`, with the options that all have besides its own."""
    shared = inspect.signature(_shared, eval_str=True).parameters

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def called(**given: Any) -> None:
            _shared(**{name: given.pop(name) for name in shared})
            try:
                function(**given)
            except typer.Exit:
                output().finish()
                raise
            output().finish()

        parameters = [*own.parameters.values(), *shared.values()]
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        called.__signature__ = own.replace(parameters=keywords)  # pyright: ignore[reportAttributeAccessIssue]
        called.__annotations__ = {p.name: p.annotation for p in keywords}
        app.command()(called)
        return function

    return register


def _plain(value: Any) -> Any:
    """The same value for JSON, which knows neither NaN nor arrays, tables, records and paths."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if (records := getattr(value, "to_dict", None)) is not None:  # of pandas
        return _plain(records("records"))
    if (numbers := getattr(value, "tolist", None)) is not None:  # of numpy
        return _plain(numbers())
    return None if isinstance(value, float) and not math.isfinite(value) else value
