"""What a person sees while a stage runs: messages on stderr and one progress display.

On a terminal the progress is a rich bar with rate and time left; elsewhere it is a plain line
every so often, so that a batch log stays readable. Results go to stdout, everything else here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False)

QUIET, NORMAL, VERBOSE = 0, 1, 2
_level = NORMAL
_PLAIN_SECONDS = 15.0


def set_level(level: int) -> None:
    """QUIET shows errors and warnings only, VERBOSE adds details."""
    global _level
    _level = level


def info(message: str) -> None:
    """A line of normal progress."""
    if _level >= NORMAL:
        stderr.print(escape(message))


@contextmanager
def paged(wanted: bool) -> Iterator[None]:
    """Send what is printed to stdout through $PAGER, if that is a terminal and it is `wanted`."""
    if not (wanted and stdout.is_terminal):
        yield
        return
    # As git does: less shows colours, and ends by itself if all fits the screen.
    os.environ.setdefault("LESS", "FRX")
    with stdout.pager(styles=True):
        yield


def detail(message: str) -> None:
    """A line for --verbose."""
    if _level >= VERBOSE:
        stderr.print(f"[dim]{escape(message)}[/dim]")


def warn(message: str) -> None:
    """A line that is shown even with --quiet: the result may not be what the user expects."""
    stderr.print(f"[yellow]warning:[/yellow] {escape(message)}")


class Meter:
    """Counts units of work; `advance` after each piece."""

    def __init__(self, title: str, total: int | None, done: int, unit: str) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._note = ""
        self._first = done
        self._start = self._shown = time.monotonic()

    def note(self, text: str) -> None:
        """What is shown beside the count from now on, for instance a residual."""
        self._note = f" ({text})" if text else ""

    def expect(self, total: int, done: int = 0) -> None:
        """How much there is to do, where it was not known at first."""
        self.total, self.done = total, done
        self._first = done
        self._start = time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount

    def reach(self, done: int) -> None:
        """Advance to a total that others have counted, too."""
        self.advance(done - self.done)

    def rate(self) -> float:
        """Units a second since this process began (resumed work does not count)."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _speed(self, of: str = "") -> str:
        """The rate, by the minute where it is slow."""
        rate = self.rate()
        return f"{rate:.1f}{of}/s" if rate >= 0.1 else f"{60 * rate:.1f}{of}/min"


class _PlainMeter(Meter):
    def advance(self, amount: int) -> None:
        super().advance(amount)
        now = time.monotonic()
        if now - self._shown < _PLAIN_SECONDS:
            return
        self._shown = now
        of = f"/{self.total}" if self.total is not None else ""
        left = ""
        if self.total is not None and self.rate() > 0:
            left = f", {(self.total - self.done) / self.rate():.0f} s left"
        info(f"{self.title}: {self.done}{of} {self.unit}{self._note}, {self._speed()}{left}")


class _BarMeter(Meter):
    def __init__(self, bar: Progress, title: str, total: int | None, done: int, unit: str) -> None:
        super().__init__(title, total, done, unit)
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=done, rate="")

    def advance(self, amount: int) -> None:
        super().advance(amount)
        self._show()

    def expect(self, total: int, done: int = 0) -> None:
        super().expect(total, done)
        self._show()

    def note(self, text: str) -> None:
        super().note(text)
        self._show()

    def _show(self) -> None:
        rate = f"{self._speed(f' {self.unit}')}{self._note}"
        self._bar.update(self._task, completed=self.done, total=self.total, rate=rate)


@contextmanager
def progress(
    title: str, total: int | None, *, done: int = 0, unit: str = "sequences"
) -> Iterator[Meter]:
    """Show the progress of `total` units of work, `done` of them finished by an earlier run."""
    if _level < NORMAL:
        yield Meter(title, total, done, unit)
    elif not stderr.is_terminal:
        yield _PlainMeter(title, total, done, unit)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr, transient=True) as bar:
            yield _BarMeter(bar, title, total, done, unit)
