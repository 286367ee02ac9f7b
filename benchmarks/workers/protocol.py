"""What the benchmark's workers have in common: JSON lines in, JSON lines out, time and memory.

A worker is a process of its own, in the virtual environment of what it measures. It gets a folder
with `model/`, `bench.json`, `tokens.npy` [N, T], `queries.npy` [Q, T'] and `starts.npy` [Q], loads
the model once, and does one job a line: {"do": name, ...}. Of an answer, `seconds` leaves imports
and the loading of the model out, `peak_bytes` is the growth of resident memory (on a GPU, of
allocated memory), and `error` says why a job cannot be done.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

Job = Callable[..., dict[str, Any]]


def claim_stdout() -> TextIO:
    """Only answers belong on stdout: what a library prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def read_bench(work: Path) -> dict[str, Any]:
    bench = json.loads((work / "bench.json").read_text())
    torch.set_num_threads(bench["threads"])
    return bench


def serve(answers: TextIO, jobs: Mapping[str, Job], packages: tuple[str, ...]) -> None:
    """Answer jobs until an empty line, or the end of stdin."""
    versions = {name: version(name) for name in (*packages, "torch", "transformers")}
    print(json.dumps({"ready": True, "versions": versions}), file=answers)
    for line in sys.stdin:
        if not line.strip():
            return
        try:
            request = json.loads(line)
            answer = jobs[request.pop("do")](**request)
        except Exception as fault:
            answer = {"error": f"{type(fault).__name__}: {fault}"}
        # While the others work, it holds its model and what its tool keeps, and no more.
        give_back()
        print(json.dumps(answer), file=answers)


def give_back() -> None:
    """To the system: what was freed, but kept by malloc."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Puts the seconds and the growth of memory of its block in what it yields."""
    answer: dict[str, Any] = {}
    torch.manual_seed(0)
    # Memory that the step before freed but malloc kept would hide what this step needs.
    give_back()
    on_gpu = torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    begun = now()
    yield answer
    answer["seconds"] = now() - begun
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    answer["peak_bytes"] = max(0, peak - before)


def resident(field: str) -> int:
    """Bytes, of the kernel's account of this process: VmRSS, or its highest, VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def disk_bytes(*folders: Path) -> int:
    """Of the files below, without the copies of scores that a worker makes for the driver."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and path.suffix != ".npy")
