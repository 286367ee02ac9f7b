"""A `sbatch` that runs a job before it answers: its tasks one by one, last first, in the folder and
with the environment that it was called with, as Slurm would on a cluster with nothing else to do.

A job whose dependency failed is cancelled. FAKE_SBATCH holds JSON: `folder` for its records,
`fail` and `preempt`, each perhaps "JOB NAME:TASK", which happens once: a task that ends with 1 at
once, or that gets SIGKILL after `seconds` and, if the script says --requeue, is run again.
`jobs.jsonl` in the folder tells what became of the jobs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

KNOWN = {"parsable", "array", "dependency", "job-name", "export", "kill-on-invalid-dep", "requeue",
         "open-mode", "mem"}  # fmt: skip


def main(words: list[str]) -> int:
    settings = json.loads(os.environ["FAKE_SBATCH"])
    folder = Path(settings["folder"])
    end = next(place for place, word in enumerate(words) if not word.startswith("--"))
    script, arguments = Path(words[end]), words[end + 1 :]
    of_script = re.findall(r"^#SBATCH (\S+)$", script.read_text(), re.MULTILINE)
    options = dict(_option(word) for word in (*of_script, *words[:end]))
    jobs = [json.loads(line) for line in _lines(folder / "jobs.jsonl")]
    number = 1000 + len(jobs)
    job: dict[str, Any] = {"id": number, "name": options.get("job-name"), "options": options}
    job |= {"tasks": {}, "state": "completed"}
    states = {one["id"]: one["state"] for one in jobs}
    kind, _, needed = options.get("dependency", "afterok:").partition(":")
    assert kind == "afterok", kind
    if any(states[int(one)] != "completed" for one in needed.split(":") if one):
        assert options["kill-on-invalid-dep"] == "yes", "the job would wait for ever"
        job["state"] = "cancelled"
    else:
        spool = folder / f"{number}.sh"
        shutil.copy(script, spool)
        for task in reversed(_tasks(options.get("array"))):
            codes = list(_run(spool, arguments, job, task, settings))
            job["tasks"][str(task)] = codes
            if codes[-1] != 0:
                job["state"] = "failed"
    with (folder / "jobs.jsonl").open("a") as record:
        print(json.dumps(job), file=record)
    print(number if "parsable" in options else f"Submitted batch job {number}")
    return 0


def _option(word: str) -> tuple[str, str]:
    name, _, value = word.removeprefix("--").partition("=")
    if name not in KNOWN:
        sys.exit(f"sbatch: unrecognized option '{word}'")
    return name, value


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _tasks(array: str | None) -> list[int | None]:
    if array is None:
        return [None]
    first, _, last = array.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _run(spool: Path, arguments: list[str], job: dict[str, Any], task: int | None, settings: Any):
    """Run a task, again if it is preempted. Yields the exit codes."""
    environment = {**os.environ, "SLURM_JOB_ID": str(job["id"])}
    if task is not None:
        count = len(_tasks(job["options"]["array"]))
        environment |= {
            "SLURM_ARRAY_JOB_ID": str(job["id"]),
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": str(count),
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_MAX": str(count - 1),
        }
    me = f"{job['name']}:{task}"
    if settings.get("fail") == me and _once(spool.parent / ".failed"):
        yield 1
        return
    with (spool.parent / f"slurm-{job['id']}_{task}.out").open("a") as log:
        command = ["bash", str(spool), *arguments]
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        if settings.get("preempt") == me and _once(spool.parent / ".preempted"):
            time.sleep(settings["seconds"])
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            yield process.wait()
            assert "requeue" in job["options"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        yield process.wait()


def _once(marker: Path) -> bool:
    if marker.exists():
        return False
    marker.touch()
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
