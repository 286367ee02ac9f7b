"""The batch scripts that come with the package do what they say, run for real: the Slurm script by
a `sbatch` that sets the variables of an array, through preemption, failure and resubmission.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import corpus_fixtures
import fake_sbatch
import numpy as np
import pytest
from commands import contents
from pipeline import CPU, Pipeline, scores
from served import Served

import inflcli

SCRIPTS = Path(inflcli.__file__).parent / "batch"
STEPS = ["fit", "merge-fit", "fit", "merge-fit", "queries", "scan", "finish"]
SHARDS = 3


@dataclass
class Cluster:
    """Submits the Slurm script with `folder/RUN` as its run."""

    pipeline: Pipeline
    queries: Path
    served: Served
    folder: Path

    def submit(self, run: str, code: int = 0, **settings: object) -> list[dict]:
        """What became of the jobs of this submission; paths are relative, as people give them."""
        records = self.folder / "jobs.jsonl"
        before = len(records.read_text().splitlines()) if records.exists() else 0
        environment = {
            **os.environ,
            "PATH": f"{self.folder}:{self.served.folder}:{os.environ['PATH']}",
            "FAKE_SBATCH": json.dumps({"folder": str(self.folder), **settings}),
            "MODEL": str(self.pipeline.model),
            "CORPUS": os.path.relpath(self.pipeline.run / "corpus", self.folder),
            "QUERIES": str(self.queries),
            "RUN": run,
            "SHARDS": str(SHARDS),
            "FIT": "--precision exact",
            "PRECONDITION": "--rank full --precision exact",
            "SCAN": "--precision exact --top-k 7 --chunk-size 7",
            "RESOURCES": "--mem=1G",
        }
        done = subprocess.run(
            ["bash", SCRIPTS / "slurm.sh"], cwd=self.folder, env=environment, check=False,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        jobs = [json.loads(line) for line in records.read_text().splitlines()[before:]]
        assert [job["name"] for job in jobs] == [f"inflcli-{step}" for step in STEPS]
        return jobs

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("slurm-*.out"))


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    """A chain that one process ran."""
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32", CPU)
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan(top_k=7)
    pipeline.attribute()
    yield pipeline


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("bin"))
    yield found
    found.close()


@pytest.fixture
def cluster(whole, served, tiny_queries, tmp_path) -> Cluster:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_sbatch.__file__} "$@"\n')
    sbatch.chmod(0o755)
    served.take_calls()
    return Cluster(whole, tiny_queries, served, tmp_path)


def bytes_of(folder: Path) -> dict[str, str]:
    found = contents(folder)
    del found["manifest.json"]
    return found


def same_as_plain(cluster: Cluster, run: Path, name: str) -> None:
    """The scan is that which one process makes of the same queries, byte for byte, and to rounding
    that of a chain without shards."""
    plain = Pipeline(cluster.pipeline.model, run, "float32", CPU)
    corpus = os.path.relpath(cluster.pipeline.run / "corpus", run)
    plain.scan("plain", corpus=corpus, top_k=7)
    assert bytes_of(run / "scan") == bytes_of(run / "plain")
    found, right = scores(run / "scan"), scores(cluster.pipeline.run / "scan")
    assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()
    assert (run / "report/index.html").stat().st_size > 10_000


def test_slurm(cluster):
    jobs = cluster.submit("run")
    assert {job["state"] for job in jobs} == {"completed"}, cluster.logs()
    tasks = [sorted(job["tasks"]) for job in jobs]
    every = [str(number) for number in range(SHARDS)]
    assert tasks == [every, ["None"], every, ["None"], ["None"], every, ["None"]]
    assert all(job["options"]["mem"] == "1G" for job in jobs)
    same_as_plain(cluster, cluster.folder / "run", "run")
    # Once more: everything is there, and is left as it is.
    before = contents(cluster.folder / "run")
    again = cluster.submit("run")
    assert {job["state"] for job in again} == {"completed"}
    assert contents(cluster.folder / "run") == before


def test_slurm_again_after_a_failure(cluster):
    jobs = cluster.submit("failed", fail="inflcli-scan:1")
    assert [job["state"] for job in jobs] == ["completed"] * 5 + ["failed", "cancelled"]
    run = cluster.folder / "failed"
    assert not (run / "scan").exists() and not (run / "scan.shards/1-of-3").exists()
    before = contents(run)
    jobs = cluster.submit("failed", fail="inflcli-scan:1")
    assert {job["state"] for job in jobs} == {"completed"}, cluster.logs()
    after = contents(run)
    assert {name: after[name] for name in before} == before
    same_as_plain(cluster, run, "failed")


@pytest.mark.parametrize("victim", ["fit:0", "scan:1", "finish:None"])
def test_slurm_runs_a_preempted_task_again(cluster, victim):
    jobs = cluster.submit("preempted", preempt=f"inflcli-{victim}", seconds=0.3)
    assert {job["state"] for job in jobs} == {"completed"}, cluster.logs()
    step, task = victim.split(":")
    codes = next(job["tasks"] for job in jobs if job["name"] == f"inflcli-{step}")[task]
    assert codes in ([-9, 0], [0, 0])
    same_as_plain(cluster, cluster.folder / "preempted", "preempted")


@pytest.mark.parametrize("script", ["slurm.sh", "torchrun.sh"])
def test_what_is_not_given_is_named(script, tmp_path):
    environment = {"PATH": os.environ["PATH"], "MODEL": "gpt2"}
    done = subprocess.run(
        ["bash", SCRIPTS / script], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "CORPUS: a folder that prepare made" in done.stderr
    assert not list(tmp_path.iterdir())


def test_torchrun(whole, tiny_queries, tmp_path):
    """Two processes on CPUs."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    programme = tmp_path / "inflcli"
    programme.write_text(f'#!/bin/sh\nexec {sys.executable} -m inflcli "$@"\n')
    for path in (torchrun, programme):
        path.chmod(0o755)
    text = tmp_path / "many.jsonl"
    lines = [json.dumps({"text": f"{number} birds sing over the river."}) for number in range(600)]
    text.write_text("\n".join(lines))
    plain = Pipeline(whole.model, tmp_path / "run", "float32", CPU)
    plain.prepare(text)
    options = "--device cpu --dtype float32 --precision exact --batch-size 7"
    environment = {
        **corpus_fixtures.environment(),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MODEL": str(whole.model),
        "CORPUS": "run/corpus",
        "QUERIES": str(tiny_queries),
        "RUN": "run",
        "GPUS": "2",
        "FIT": options,
        "PRECONDITION": f"{options} --rank full",
        "SCAN": options,
        "ATTRIBUTE": "--device cpu --dtype float32",
    }
    done = subprocess.run(
        ["bash", SCRIPTS / "torchrun.sh"], cwd=tmp_path, env=environment, check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain.scan("plain", chunk_size=256)
    assert bytes_of(tmp_path / "run/scan") == bytes_of(tmp_path / "run/plain")
    plain.fit("whole-factors")
    plain.precondition(tiny_queries, "whole-queries", "whole-factors")
    found, right = scores(tmp_path / "run/scan"), scores(plain.scan("whole", "whole-queries"))
    assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()
    assert (tmp_path / "run/report/index.html").stat().st_size > 10_000
