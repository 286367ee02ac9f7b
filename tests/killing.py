"""A process that runs stages in children of its own, to be killed at any instant.

Run as a script with the folder of a model and of a run: it imports what the stages need once, then
forks for every line {"stage": ..., "out": ...}, and answers with the child's number, and with its
exit status when it has ended. `Killing` is the other end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

STAGES = ("prepare", "fit", "precondition", "tfidf_filter", "scan", "attribute", "report")
OUTS = {
    "prepare": "corpus",
    "fit": "factors",
    "precondition": "queries",
    "tfidf_filter": "candidates",
    "scan": "scan",
    "attribute": "attribution",
    "report": "report",
}


class Killing:
    """Starts stages of one run, and kills them."""

    def __init__(self, model: Path, run: Path, text: Path, queries: Path) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(model), str(run), str(text), str(queries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def start(self, stage: str, out: str) -> int:
        """The number of the process that runs `stage`."""
        assert self.process.stdin
        print(json.dumps({"stage": stage, "out": out}), file=self.process.stdin, flush=True)
        return self._answer()

    def wait(self) -> int:
        """The exit status of what was started last; minus the signal that ended it."""
        return os.waitstatus_to_exitcode(self._answer())

    def kill_after(self, seconds: float, stage: str, out: str) -> int:
        """Run a stage, and send SIGKILL to its process group after that time."""
        number = self.start(stage, out)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)
        return self.wait()

    def _answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


def serve(model: Path, run: Path, text: Path, queries: Path) -> None:
    import torch

    torch.set_num_threads(1)
    from dataclasses import replace

    from pipeline import CPU, Pipeline

    runtime = replace(CPU, checkpoint_seconds=0.0, batch_size=5)
    pipeline = Pipeline(model, run, "float32", runtime)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            status = 1
            try:
                run_stage(pipeline, job["stage"], job["out"], text, queries)
                status = 0
            finally:
                os._exit(status)
        with suppress(OSError):
            os.setpgid(child, child)  # whichever of the two comes first
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def run_stage(pipeline: Any, stage: str, out: str, text: Path, queries: Path) -> None:
    if stage == "prepare":
        pipeline.prepare(text, out)
    elif stage == "fit":
        pipeline.fit(out)
    elif stage == "precondition":
        pipeline.with_batches(1).precondition(queries, out, rank=3)
    elif stage == "tfidf_filter":
        pipeline.tfidf_filter(queries, out)
    elif stage == "report":
        pipeline.report(out)
    else:
        getattr(pipeline, stage)(out)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(*map(Path, sys.argv[1:5]))
