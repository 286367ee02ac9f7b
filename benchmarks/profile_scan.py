"""Where the time and the memory of a scan go, beside the plain pass.

    python benchmarks/profile_scan.py llama-576x12      after a benchmark of that shape

Scans `runs/bench/SHAPE` as the benchmark does, in one process with the plain pass, taking turns;
the first turn is thrown away. Prints medians of seconds, and the highest that resident memory grew
to in each part, in MiB above what it was before the scan. `--route` forces one, `--queries` names
preconditioned ones of the benchmark, such as "full rank".
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shapes import SHAPES

sys.path.insert(0, str(Path(__file__).parent / "workers"))

import inflcli_worker
import plain_worker
import protocol

from inflcli.model.passes import Passes
from inflcli.stages import scan as scan_stage
from inflcli.stages.scoring import Scorer

_INSIDE = "scores: a, g and the queries"
_PASSES = "passes"
PARTS: list[tuple[str, Any, str]] = [
    ("reading the queries", scan_stage, "load_queries"),
    ("finding out about the head", Passes, "for_model"),
    (_PASSES, Passes, "run"),
    (_INSIDE, Scorer, "consume"),
    ("scores: what had waited", Scorer, "end"),
    ("writing", scan_stage.Scan, "_record"),
    ("making it durable", scan_stage.common.Begun, "finish"),
]


class Watch:
    """Adds up the seconds of functions, and what memory grew to in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, int] = defaultdict(int)
        self.before = 0

    def wrap(self, part: str, owner: Any, name: str) -> None:
        function = getattr(owner, name)
        watched: Any = self._watched(part, function)
        setattr(owner, name, staticmethod(watched) if inspect.ismethod(function) else watched)

    def _watched(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds[part] += time.perf_counter() - begun
                grown = protocol.resident("VmHWM") - self.before
                self.peaks[part] = max(self.peaks[part], grown)

        return call

    def start(self) -> None:
        self.seconds.clear()
        self.peaks.clear()
        self.before = protocol.resident("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--queries", default="")
    parser.add_argument("--route", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    shape, work = SHAPES[options.shape], (options.work / options.shape).resolve()
    if not (work / "ours" / "corpus").is_dir():
        sys.exit(f"{work} is not there: benchmark the shape first")
    ours, plain, watch = inflcli_worker.Worker(work), plain_worker.Worker(work), Watch()
    for part in PARTS:
        watch.wrap(*part)
    name = options.queries or str(min(16, shape.queries))
    found: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = {}
    for turn in range(options.turns + 1):
        passed = plain.plain("activations", shape.batch)
        protocol.give_back()
        watch.start()
        scanned = ours.scan(name, shape.batch, route=options.route)
        protocol.give_back()
        if turn == 0:
            continue
        watch.seconds[_PASSES] -= watch.seconds[_INSIDE]
        rest = scanned["seconds"] - sum(watch.seconds.values())
        for part, seconds in {**watch.seconds, "the rest": rest}.items():
            found[part].append(seconds)
        found["a scan"].append(scanned["seconds"])
        found["a plain pass"].append(passed["seconds"])
        peaks = {**watch.peaks, "a scan": scanned["peak_bytes"]}
        peaks["a plain pass"] = passed["peak_bytes"]
    print(f"{options.shape}, {name} queries, routes {scanned['routes']}")
    for part, seconds in found.items():
        peak = f"{peaks[part] / 2**20:7.0f} MiB" if part in peaks else ""
        print(f"{part:32} {statistics.median(seconds):7.3f} s {peak}")


if __name__ == "__main__":
    main()
