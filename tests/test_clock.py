"""A clock that jumps by hours, and files from the future or the past, change no result, end no
stage, and put no record of progress off for good.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import clocks
import pytest
from clocks import HOURS
from killing import OUTS, run_stage
from pipeline import CPU, Pipeline
from test_mended_queries import files_of

from inflcli.artifacts.folder import partial_path
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.stages.common import Checkpoints


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    runtime = replace(CPU, batch_size=5)
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32", runtime)
    for stage, out in OUTS.items():
        run_stage(pipeline, stage, out, tiny_text, tiny_queries)
    return pipeline


def scatter_times(folder: Path, draw: random.Random) -> None:
    """As files that another host wrote, or this one before its clock was set."""
    for path in [folder, *folder.rglob("*")]:
        then = time.time() + draw.uniform(-9 * HOURS, 9 * HOURS)
        os.utime(path, (then, then))


@pytest.mark.parametrize("seconds", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("stage", [stage for stage in OUTS if stage != "report"])
def test_stages(whole, tiny_text, tiny_queries, monkeypatch, stage, seconds):
    """Stopped after each third record, too, and gone on with."""
    out, draw = f"{stage}-{seconds}", random.Random(seconds)
    pipeline = replace(whole, runtime=replace(whole.runtime, checkpoint_seconds=seconds))
    commit, left = ArtifactWriter.commit, [3]

    def scattered(self, *arguments):
        commit(self, *arguments)
        scatter_times(self.folder, draw)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    for attempt in range(40):
        left[0] = 3
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            clocks.jump(attempt, patch.setattr)
            patch.setattr(ArtifactWriter, "commit", scattered)
            run_stage(pipeline, stage, out, tiny_text, tiny_queries)
        if (whole.run / out).exists():
            break
    assert files_of(whole.run / out) == files_of(whole.run / OUTS[stage])
    assert not partial_path(whole.run / out).exists()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def waited(checkpoints: Checkpoints, clock: list[float]) -> float:
    """How long, in true time, until a record is due."""
    for step in range(10_000):
        if checkpoints.due():
            return 10.0 * step
        clock[0] += 10.0
    raise AssertionError("never")


@pytest.mark.parametrize("jump", [-9 * HOURS, -600.0, -5.0, 5.0, 600.0, 9 * HOURS])
@pytest.mark.parametrize("after", [0.0, 100.0, 1800.0])
def test_a_record_is_due_in_good_time_after_a_jump(clock, after, jump):
    """While waiting, however long the wait was to be."""
    for seconds in (30.0, 1900.0):
        checkpoints = Checkpoints(seconds)
        clock[0] += after
        clock[0] += jump
        assert waited(checkpoints, clock) <= seconds + 10


@pytest.mark.parametrize("jump", [-9 * HOURS, 9 * HOURS, 9000 * HOURS])
def test_a_jump_while_recording(clock, jump):
    checkpoints = Checkpoints(30.0)
    with checkpoints.saving():
        clock[0] += jump
    assert waited(checkpoints, clock) <= HOURS


def test_records_cost_little(clock):
    """A record that takes a minute is not made twice in twenty."""
    checkpoints = Checkpoints(30.0)
    assert waited(checkpoints, clock) == 30
    with checkpoints.saving():
        clock[0] += 60.0
    assert waited(checkpoints, clock) == 1200
