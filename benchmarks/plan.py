"""Hold `inflcli plan` against the run that follows: time, peak memory and disk of every stage.

    python benchmarks/plan.py --name demo --model inflcli/demo/model \\
        --text inflcli/demo/corpus.jsonl --queries inflcli/demo/queries.jsonl

Prepares the corpus, plans, then runs the other stages, each as a process of its own whose peak is
the system's ru_maxrss, so on a CPU only. Prints a Markdown table,
and writes it with all figures to `benchmarks/results/plan-NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse()
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        **compare(
            options.model,
            options.text,
            options.queries,
            options.work / options.name,
            seq_len=options.seq_len,
            fit=options.fit,
        ),
    }
    result["table"] = table(result["stages"])
    (RESULTS / f"plan-{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result["table"])


def compare(
    model: str, text: str, queries: str, work: Path, *, seq_len: int, fit: int
) -> dict[str, Any]:
    """Plan and run; `stages` has what was planned and found of each."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    names = ("corpus", "factors", "queries", "candidates", "scan", "attribution", "report")
    corpus, factors, preconditioned, candidates, scan, attribution, report = (
        work / name for name in names
    )
    cut = ("--per-line", "--seq-len", seq_len)
    made = {"prepare": run("prepare", "--tokenizer", model, "--input", text, *cut, "--out", corpus)}
    every = ("--model", model, "--device", "cpu")
    sample = ("--corpus", corpus, "--max-sequences", fit)
    planned = run("plan", *every, *sample, "--queries", queries, "--run", work, "--json")
    plan = json.loads(planned["stdout"])
    both = ("--queries", preconditioned, "--corpus", corpus)
    asked = ("--queries", queries)
    stages = {
        "prepare": (corpus, ()),
        "fit-factors": (factors, (*every, *sample)),
        "precondition": (preconditioned, (*every, "--factors", factors, *asked)),
        "tfidf-filter": (candidates, ("--corpus", corpus, *asked)),
        "scan": (scan, (*every, *both)),
        "attribute": (attribution, (*every, *both, "--scan", scan)),
        "report": (report, ("--run", work)),
    }
    predicted = {row["stage"]: row for row in plan["stages"]}
    rows = []
    for stage, (folder, arguments) in stages.items():
        done = made.get(stage) or run(stage, *arguments, "--out", folder)
        found = {key: done[key] for key in ("seconds", "memory")} | {"disk": disk_bytes(folder)}
        rows.append({"stage": stage, "planned": predicted[stage], "found": found})
    return {"seconds_planning": planned["seconds"], "plan": plan, "stages": rows}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--fit", type=int, default=200, help="sequences of the fit")
    parser.add_argument("--work", type=Path, default=Path("runs/plan"))
    return parser.parse_args()


def run(*arguments: Any) -> dict[str, Any]:
    """An inflcli command: what it prints, the seconds it took, and the peak of its memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "inflcli", *(str(word) for word in arguments), "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if process.returncode:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}")
    return {"seconds": seconds, "memory": usage.ru_maxrss * 1024, "stdout": printed}


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(rows: list[dict[str, Any]]) -> str:
    """Planned and found, and found over planned."""
    lines = [
        "| stage | time, planned | found | | memory, planned | found | | disk, planned | found | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row["stage"]]
        for key, shown in (("seconds", seconds), ("memory", mebibytes), ("disk", mebibytes)):
            planned, found = row["planned"][key], row["found"][key]
            cells += [shown(planned), shown(found), f"{found / planned:.2f}×"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def mebibytes(value: float) -> str:
    mib = value / 2**20
    return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.2f} MiB"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()
