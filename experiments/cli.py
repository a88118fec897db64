"""The command `semcal`: which commands there are, and how it ends. What they do is in `experiments/terminal/`."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from importlib import metadata
from typing import Annotated

import typer
from rich.logging import RichHandler

from experiments.pipeline.signals import Stopped, stopping
from experiments.terminal.analysis_commands import gate, probe, score
from experiments.terminal.comparison_commands import compare, transfer, verdict
from experiments.terminal.model_commands import intervene, tilt, train
from experiments.terminal.output import command, complaints, output
from experiments.terminal.report_commands import ls, report
from experiments.terminal.study_commands import doctor, init, merge, prompts, run
from semcal.errors import UserError, check_packages

# Neither above nor in these modules is anything slow imported: a typing mistake is answered in less than a second.
COMMANDS = (
    *(init, run, merge, prompts, doctor, score, probe, compare, intervene),
    *(transfer, tilt, gate, verdict, report, ls, train),
)

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # silences the progress bars of libraries, but not their warnings
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Is a language model's confidence in what it means calibrated, and does the model know it before it answers?",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"semcal {metadata.version('semcal')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None: ...


for function in COMMANDS:
    command(app)(function)


def main() -> None:
    """Entry point: an error that the user can fix is one line on stderr and exit code 2; Ctrl-C and signals that end a
    process are one line and 128 plus the number of the signal (130 for Ctrl-C, 143 for SIGTERM). A reader of stdout
    that has gone, as in `semcal ls | head -1`, is no error."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=complaints, show_time=False, show_path=False)],
    )
    with stopping() as told:
        try:
            check_packages()
            app(prog_name="semcal", standalone_mode=True)
        except UserError as error:
            if output().verbose:
                complaints.print_exception()
            complaints.print("[bold red]semcal:[/bold red] ", end="")
            complaints.print(" ".join(str(error).split()), markup=False)
            raise SystemExit(2) from None
        except BrokenPipeError:
            _leave_quietly()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            complaints.print(f"semcal: stdout cannot be written ({error.strerror})", markup=False)
            _leave_quietly(2)
        except SystemExit as ended:
            if _reader_is_gone():
                _leave_quietly()
            raise ended
        except Stopped as stopped:
            with suppress(OSError):  # the terminal may be gone
                complaints.print(f"semcal: {stopped.line}", markup=False)
            told.set()
            raise SystemExit(stopped.code) from None


def _reader_is_gone() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _leave_quietly(code: int = 0) -> None:
    """End as programs do whose output nobody reads any more; Python would complain while it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
