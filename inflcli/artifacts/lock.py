"""One process at a time writes an artifact.

The operating system's lock on `.NAME.lock` beside the artifact decides; it goes with its owner,
however that ends, so no lock is ever stale and no clock is asked. `.NAME.owner` only tells the one
who waits who it is.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from inflcli.artifacts import files


@contextmanager
def exclusive(artifact: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the artifact's lock; where another process does, tell `waiting` who, and wait."""
    with files.write_errors(artifact):
        files.make_folder(artifact.parent)
        lock = FileLock(_beside(artifact, "lock"))
        owner = _beside(artifact, "owner")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting(f"{artifact} is being written by {_describe(owner)}: waiting")
            lock.acquire()
    try:
        with files.write_errors(artifact):
            owner.write_text(json.dumps(_myself()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _beside(artifact: Path, what: str) -> Path:
    return artifact.with_name(f".{artifact.name}.{what}")


def _myself() -> dict[str, str | int | float]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _describe(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text())
        who = f"process {found['process']} on {found['host']}"
        minutes = (time.time() - found["since"]) / 60
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
    # A clock that was set back, or another host's, may put its start into the future.
    return f"{who}, for {minutes:.0f} min" if minutes >= 1 else who
