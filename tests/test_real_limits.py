"""A disk that is really full, and a real limit on the size of files, end a stage with exit code 5;
with space again the same command finishes with the same bytes.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import contents
from killing import OUTS, STAGES, run_stage
from pipeline import CPU, Pipeline

from inflcli.errors import OutOfResources


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32", CPU)
    for stage in STAGES:
        run_stage(pipeline, stage, OUTS[stage], tiny_text, tiny_queries)
    yield pipeline


@pytest.fixture(scope="module")
def small_disk(whole) -> Iterator[Path]:
    """A file system of 1 MiB at `run/disk`."""
    disk = whole.run / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "inflcli-test", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def same(found: Path, expected: Path) -> None:
    one, other = contents(found), contents(expected)
    del one["manifest.json"], other["manifest.json"]
    assert one == other


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(whole, small_disk, tiny_text, tiny_queries, stage):
    """Filled but for a little more each time, until the stage has enough."""
    out, refusals = f"disk/{OUTS[stage]}", 0
    for free in (0, 4, 16, 48, 100, 200, 400, 1000):
        fill(small_disk, free << 10)
        try:
            run_stage(whole, stage, out, tiny_text, tiny_queries)
        except OutOfResources as error:
            refusals += 1
            assert "no space left" in str(error)
            assert not (whole.run / out).exists()
        else:
            break
    assert refusals
    same(whole.run / out, whole.run / OUTS[stage])
    for path in small_disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(disk: Path, free: int) -> None:
    """Write a file that leaves `free` bytes, beside what is there."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    about = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, about.f_bavail * about.f_frsize - free)))


@pytest.mark.parametrize("stage", ["prepare", "fit", "precondition", "scan", "report"])
def test_a_limit_on_files(whole, tiny_text, tiny_queries, stage):
    """`ulimit -f`: the write ends half-way, with EFBIG where SIGXFSZ is ignored, as Python does."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    out, refusals = f"limited-{OUTS[stage]}", 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (64, 512, 2048, 8192, before[1]):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            run_stage(whole, stage, out, tiny_text, tiny_queries)
        except OutOfResources:
            refusals += 1
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusals
    same(whole.run / out, whole.run / OUTS[stage])
