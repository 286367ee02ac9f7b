"""Starts the workers of one tool: imports what they need once, and forks one for every shape.

    python workers/start.py WORKER_SCRIPT MODULE...

Each line on stdin is the folder of a shape's work. The worker takes over stdin and stdout until an
empty line ends it; its stderr goes to SCRIPT.log in that folder. What is imported here starts no
threads, so that a fork is sound.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path


def main() -> None:
    script, modules = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(script.parent))
    answers = os.dup(1)
    os.dup2(2, 1)  # only answers belong on stdout
    for module in modules:
        importlib.import_module(module)
    os.dup2(answers, 1)
    while work := _line():
        child = os.fork()
        if not child:
            _work(script, Path(work))
        _, status = os.waitpid(child, 0)
        if status:  # the driver waits for an answer: the end of stdout is one
            sys.exit(f"{script.stem} ended with {os.waitstatus_to_exitcode(status)}")


def _line() -> str:
    """The next line, and not a byte of what follows it, which is for the worker."""
    found = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        found += byte
    return found.decode()


def _work(script: Path, work: Path) -> None:
    log = os.open(work / f"{script.stem}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    sys.argv = [str(script), str(work)]
    code = 1
    try:
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
