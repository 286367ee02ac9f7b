"""The edge between the programme and its user: errors become one line and an exit code.

0 done, 2 bad input, 3 missing or stale artifact, 4 corrupt artifact, 5 out of resources,
130 interrupted, 1 a fault of the programme's own. `--debug` shows the traceback besides.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer
from rich.markup import escape

from inflcli import distributed
from inflcli.cli import common
from inflcli.console import stderr
from inflcli.errors import InflcliError, OutOfResources


def at_the_edge(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that whatever it raises leaves as an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            command(*args, **options)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if common.debugging():
                stderr.print_exception()
            message, hint, code = describe(error)
            if distributed.rank() and isinstance(error, KeyboardInterrupt):
                raise typer.Exit(code) from None  # the first process says so
            line = escape(" ".join(message.split()))
            stderr.print(
                f"[bold red]error:[/bold red] {line}" + (f" ({escape(hint)})" * bool(hint))
            )
            raise typer.Exit(code) from None

    return wrapped


def describe(error: BaseException) -> tuple[str, str, int]:
    """Message, hint and exit code of an exception."""
    if isinstance(error, InflcliError):
        return error.message, error.hint or "", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "run the same command again: it resumes", 130
    smaller = "try a smaller --batch-size"
    if isinstance(error, MemoryError):
        return "out of memory", smaller, OutOfResources.exit_code
    if type(error).__name__ == "OutOfMemoryError":  # torch's, named so as not to import torch
        return "out of device memory", smaller, OutOfResources.exit_code
    report = "run again with --debug for the traceback, and please report it"
    return f"unexpected {type(error).__name__}: {error}", report, 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM, which batch systems send before they kill, ends a run as Ctrl-C does."""
    raise KeyboardInterrupt
