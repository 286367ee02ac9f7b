"""Processes of a torchrun find what one process finds, whoever does what: the same scores to the
last bit, the same factors to the rounding of their sums; and go on after one of them is lost.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from pipeline import Pipeline, scores
from ranks import (
    LAUNCH,
    environment,
    fit_command,
    launch,
    same_factors,
    scan_command,
    torchrun,
)

from inflcli.artifacts.folder import partial_path
from inflcli.artifacts.ledger import read_progress
from inflcli.artifacts.scan import ScanReader


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    """A chain that one process ran."""
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    return pipeline


def test_fit_of_two_processes(whole):
    said = torchrun(whole, "-m", "quiet_exit", *fit_command(whole, "factors-2"))
    assert said.count("factors-2: ekfac") == 1
    same_factors(whole.run / "factors-2", whole.run / "factors")


def test_scan_of_two_processes(whole):
    torchrun(whole, "-m", "quiet_exit", *scan_command(whole, "scan-2"))
    out = whole.run / "scan-2"
    assert np.array_equal(scores(out), scores(whole.run / "scan"))
    tops = [ScanReader.open(path).top() for path in (out, whole.run / "scan")]
    assert all(np.array_equal(*pair) for pair in zip(*tops, strict=True))
    assert "up to date" in torchrun(whole, "-m", "inflcli", *scan_command(whole, "scan-2"))


def test_shards_of_processes(whole):
    """A shard may itself be a torchrun's."""
    for number in range(2):
        command = [*scan_command(whole, "scan-shards"), "--shard", f"{number}/2"]
        torchrun(whole, "-m", "inflcli", *command, ranks=1 + number)
    merge = [sys.executable, "-m", "inflcli", "merge", str(whole.run / "scan-shards")]
    subprocess.run(merge, check=True, env=environment())
    assert np.array_equal(scores(whole.run / "scan-shards"), scores(whole.run / "scan"))


def test_a_stage_of_one_process_says_so(whole, tiny_text):
    arguments = ["prepare", "--tokenizer", whole.model, "--input", tiny_text, "--out", "other"]
    done = launch(whole.run, 2, "-m", "quiet_exit", *arguments)
    assert done.returncode != 0
    assert "exitcode  : 2 " in done.stderr
    assert "prepare runs in one process" in done.stderr


@pytest.mark.parametrize("stage", ["fit", "scan"])
def test_a_lost_worker_is_replaced(whole, stage):
    """One of two dies after its third record of progress; torchrun starts both again."""
    out, commands = f"{stage}-lost", {"fit": fit_command, "scan": scan_command}
    again = ["--max-restarts=1", "--monitor-interval=0.1"]
    said = torchrun(whole, *again, "-m", "mortal", out, 3, *commands[stage](whole, out))
    assert (whole.run / f"{out}.died").exists()
    assert f"{out}: " in said
    expected = whole.run / {"fit": "factors", "scan": "scan"}[stage]
    if stage == "fit":
        same_factors(whole.run / out, expected)
    else:
        assert np.array_equal(scores(whole.run / out), scores(expected))


@pytest.mark.parametrize("stage", ["fit", "scan"])
def test_killed_and_resumed_by_one_process(whole, stage):
    """All are killed at once; what they recorded counts once, for a process alone, too."""
    out, commands = f"{stage}-killed", {"fit": fit_command, "scan": scan_command}
    arguments = ["--nproc-per-node=2", "-m", "slow", *map(str, commands[stage](whole, out))]
    process = subprocess.Popen(
        [*LAUNCH, *arguments],
        cwd=whole.run, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder, kind = partial_path(whole.run / out), {"fit": "done", "scan": "chunks"}[stage]
    while not len(read_progress(folder).get(kind, [])) > 3:
        assert process.poll() is None
        time.sleep(0.05)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    assert len(list(folder.glob("progress*.json"))) == 2
    alone = [sys.executable, "-m", "inflcli", *map(str, commands[stage](whole, out))]
    subprocess.run(alone, cwd=whole.run, check=True, env=environment())
    if stage == "fit":
        same_factors(whole.run / out, whole.run / "factors")
    else:
        assert np.array_equal(scores(whole.run / out), scores(whole.run / "scan"))
