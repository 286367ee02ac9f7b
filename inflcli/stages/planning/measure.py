"""Time and peak memory of a block of work, measured where a stage would feel them."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Measured:
    """Filled at the end of the block."""

    seconds: float = 0.0
    growth: float = 0.0
    """Bytes at the peak, above what was held before."""


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def held(device: torch.device) -> float:
    """Bytes in use: of the device, or resident ones of the host."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


@contextmanager
def measured(device: torch.device, *, above: float | None = None) -> Iterator[Measured]:
    """Time the block and find its peak of memory.

    With `above` the growth is over so many bytes, and what malloc keeps from earlier blocks
    counts, as it does in a stage that goes on after them.

    Where the system does not let the host's peak be set back, that of the process stands in:
    too high if something before the block held more.
    """
    found = Measured()
    gc.collect()
    if above is None:
        # What was freed but kept by malloc would hide what the block needs.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _CLEAR.write_text("5")
    before, begun = held(device) if above is None else above, now(device)
    yield found
    found.seconds = now(device) - begun
    found.growth = max(0.0, _peak(device) - before)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, IndexError):
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
