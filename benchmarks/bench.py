"""The benchmark: the plain passes, inflcli, kronfluence and bergson, alternating in one run.

    make bench                five models, of three a part of the modules; the peers come in
                              environments of their own
    make bench-long           these three with all modules
    python benchmarks/bench.py --shapes llama-256x4 --rounds 3 --peers kronfluence=PYTHON

Every tool is a worker process in its own environment (`workers/`), with its model loaded, that
waits while another works; a tool is imported once, and its worker for each shape forked from that.
A round does every job once, one after the other; figures are medians over the rounds, and a ratio
is the median of each round's own ratio, so that a slow minute of a shared machine falls on both of
its sides. Writes `results/SHAPE-DEVICE.json`; a processor without matrix units is a device of its
own, since other things are fast on it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, Shape, make_work

from inflcli.model.precision import has_matrix_units

HERE = Path(__file__).parent
WORKERS = {
    "plain": ("plain_worker.py", ["torch", "transformers"]),
    "inflcli": ("inflcli_worker.py", ["inflcli.stages.scan", "inflcli.stages.fit_factors"]),
    "kronfluence": ("kronfluence_worker.py", ["kronfluence", "transformers"]),
    "bergson": ("bergson_worker.py", ["bergson", "bergson.hessians.hessian_approximations"]),
}
"""A tool's script, and what is imported once for all shapes."""


class Tool:
    """A tool's processes: one that has imported it, and for each shape a worker forked from it."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        script, modules = WORKERS[name]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONWARNINGS": "ignore"}
        workers = HERE / "workers"
        self.name = name
        self.process = subprocess.Popen(
            [python, str(workers / "start.py"), str(workers / script), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def begin(self, work: Path) -> None:
        """Start a worker, which loads the model of a shape."""
        self._write(str(work.resolve()))

    def versions(self) -> Any:
        """What the worker runs on; waits until its model is loaded: the first thing to ask."""
        return self._read()["versions"]

    def ask(self, **job: Any) -> dict[str, Any]:
        """Send the worker a job, and wait for its answer."""
        self._write(json.dumps(job))
        return self._read()

    def end(self) -> None:
        """End the worker."""
        self._write("")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _write(self, line: str) -> None:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker of {self.name} ended; see its log beside its work")
        return dict(json.loads(line))


Jobs = list[tuple[str, str, dict[str, Any]]]
"""Label, worker, job; in the order of a round."""


def jobs(name: str, shape: Shape) -> Jobs:
    """What a round does for a shape."""
    every = {"batch": shape.batch}
    some = min(16, shape.queries)
    plain = [
        (f"plain {kind}", "plain", {"do": "plain", "kind": kind, **every})
        for kind in ("forward", "activations", "full")
    ]
    fit = [("fit", worker, {"do": "fit", **every}) for worker in WORKERS if worker != "plain"]
    as_usual = {"do": "fit", "multinomial": True, **every}
    fit.append(("fit with its examples' sampling", "kronfluence", as_usual))
    if name.startswith("llama-2048x1"):  # the width at which the fit is what matters
        return plain + fit
    ours: Jobs = []
    for queries in sorted({1, some, min(128, shape.queries), shape.queries}):
        job = {"do": "precondition", "queries": queries, "name": f"{queries}"}
        ours.append((f"precondition {queries} queries", "inflcli", job))
        job = {"do": "scan", "name": f"{queries}", **every}
        ours.append((f"scan {queries} queries", "inflcli", job))
    # What the peers do: kronfluence rank 32, bergson full rank.
    for what, rank in (("rank 32", 32), ("full rank", None)):
        job = {"do": "precondition", "queries": some, "name": what, "rank": rank, "keep": None}
        ours.append((f"precondition {some} queries, {what}", "inflcli", job))
    scans = {
        "full rank": {"name": "full rank"},
        "dense": {"name": f"{some}", "route": "dense"},
        "factored": {"name": f"{some}", "route": "factored"},
    }
    for what, settings in scans.items():
        job = {"do": "scan", **settings, **every}
        ours.append((f"scan {some} queries, {what}", "inflcli", job))
    job = {"do": "scan", "name": f"{some}", "token_scores": True, **every}
    ours.append((f"scan {some} queries, token scores", "inflcli", job))
    score = {"do": "score", "queries": some}
    label = f"score {some} queries"
    peers: Jobs = [
        (label, "kronfluence", {**score, "rank": 32, **every}),
        (label, "bergson", {**score, "query_batch": 4, **every}),
        (f"{label}, token scores", "kronfluence", {**score, "rank": 32, "tokens": True, **every}),
        (f"{label}, token scores", "bergson", {**score, "prepared": True, "tokens": True, **every}),
    ]
    if name == "llama-256x4":
        # Its default; it forms the gradient of every token.
        job = {**score, "rank": None, "tokens": True, **every}
        peers.append((f"{label}, token scores, full rank", "kronfluence", job))
    return plain + fit + ours + peers


def left_out(name: str, label: str) -> bool:
    """What a shape is not measured on, to keep the suite within its time."""
    if name == "llama-256x4":
        return False
    if name == "gpt2-256x4" and label.startswith("score") and label.endswith("token scores"):
        return True
    if name.endswith("-part") and label.endswith(("token scores", "n 1 queries")):
        return True
    return label.endswith("sampling")


_ONCE = (
    *(f"precondition {queries} queries" for queries in (1, 128, 1024)),
    "fit with its examples' sampling",
)
"""Done in the first round alone: what only serves another job, and what no bar is of."""


def measure(
    name: str, shape: Shape, tools: Mapping[str, Tool], options: argparse.Namespace
) -> dict[str, Any]:
    """All rounds of one shape."""
    work = options.work / name
    make_work(
        work, shape, dtype=options.dtype, device=options.device, threads=torch.get_num_threads()
    )
    wanted = [job for job in jobs(name, shape) if job[1] in tools]
    wanted = [job for job in wanted if options.only in job[0]]
    wanted = [job for job in wanted if not left_out(name, job[0])]
    workers = {worker: tools[worker] for worker in dict.fromkeys(job[1] for job in wanted)}
    for entry in workers.values():
        entry.begin(work)
    # They load side by side.
    versions = {worker: entry.versions() for worker, entry in workers.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(options.rounds):
        for label, worker, job in wanted:
            if turn and label in _ONCE:
                continue
            answer = workers[worker].ask(**job)
            _keep_scores(work, f"{worker}: {label}", answer)
            found.setdefault(f"{worker}: {label}", []).append(answer)
            seconds = answer.get("seconds")
            shown = f"{seconds:.2f} s" if seconds is not None else answer.get("error")
            parts = " ".join(f"{k} {v:.2f}" for k, v in answer.get("parts", {}).items())
            memory = f"{answer.get('peak_bytes', 0) / 2**20:.0f} MiB"
            print(f"{name} {turn + 1}: {worker}: {label}: {shown} {memory} {parts}", flush=True)
    for entry in workers.values():
        entry.end()
    return {
        "shape": name,
        "machine": machine(options.device),
        "versions": versions,
        "command": " ".join(["python", "benchmarks/bench.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "sequences": shape.sequences,
        "length": shape.length,
        "batch": shape.batch,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "jobs": found,
        "agreement": agreement(work),
    }


def _keep_scores(work: Path, label: str, answer: dict[str, Any]) -> None:
    """Under `work`; the answer loses where they are, which means nothing elsewhere."""
    answer.pop("token_scores", None)
    if "scores" in answer:
        scores = np.load(answer.pop("scores"))
        if scores.ndim == 2:
            np.save(work / f"{label.replace(': ', '~')}.scores.npy", scores)


def agreement(work: Path) -> dict[str, dict[str, float]]:
    """Pearson over sequences, smallest and mean over queries, against our full rank's scores."""
    paths = sorted(work.glob("*.scores.npy"))
    full = [path for path in paths if "full rank" in path.name]
    if not full:
        return {}
    against, found = np.load(full[0]).astype(np.float64), {}
    for path in paths:
        scores = np.load(path).astype(np.float64)
        rows = min(len(against), len(scores))
        columns = min(against.shape[1], scores.shape[1])
        if columns > 2:
            r = [
                float(np.corrcoef(a[:columns], b[:columns])[0, 1])
                for a, b in zip(against[:rows], scores[:rows], strict=True)
            ]
            name = path.name.removesuffix(".scores.npy").replace("~", ": ")
            found[name] = {"min": min(r), "mean": statistics.fmean(r)}
    return found


def kind_of(device: str) -> str:
    """What results are named by."""
    plain = device == "cpu" and not has_matrix_units(torch.device(device))
    return "cpu-without-amx" if plain else device


def machine(device: str) -> dict[str, Any]:
    described = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    described["processor"] = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    described["processor"] = names[0] if names else described["processor"]
    if device != "cpu":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    usual = ["llama-256x4", "gpt2-256x4"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=usual)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default="", help="only jobs whose label contains this")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args()
    options.peers = dict(peer.split("=", 1) for peer in options.peers)
    options.out.mkdir(exist_ok=True)
    pythons = {"plain": sys.executable, "inflcli": sys.executable, **options.peers}
    threads = torch.get_num_threads()
    tools = {name: Tool(name, python, threads) for name, python in pythons.items()}
    for name in options.shapes:
        result = measure(name, SHAPES[name], tools, options)
        path = options.out / f"{name}-{kind_of(options.device)}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    for tool in tools.values():
        tool.close()


if __name__ == "__main__":
    main()
