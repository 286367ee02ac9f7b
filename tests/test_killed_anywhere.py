"""Killed at any instant of any stage, once or again and again, a run that is started anew ends with
the bytes of one that never stopped. `make soak` does it 500 times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import contents
from killing import OUTS, STAGES, Killing

from inflcli.artifacts.folder import partial_path

KILLS = int(os.environ.get("INFLCLI_KILLS", "50"))
SEED = int(os.environ.get("INFLCLI_SEED", "0"))


@pytest.fixture(scope="module")
def killing(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Killing]:
    run = tmp_path_factory.mktemp("run")
    found = Killing(tiny_model("gpt2"), run, tiny_text, tiny_queries)
    yield found
    found.close()


@pytest.fixture(scope="module")
def seconds(killing) -> dict[str, float]:
    """How long each stage takes when nothing stops it; leaves the whole run behind."""
    found = {}
    for stage in STAGES:
        started = time.monotonic()
        killing.start(stage, OUTS[stage])
        assert killing.wait() == 0, stage
        found[stage] = time.monotonic() - started
    return found


def data(folder: Path) -> dict[str, bytes | str]:
    """Every byte, but for the manifest's timings."""
    found = dict(contents(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["timings"]
    found["manifest.json"] = json.dumps(manifest)
    return found


def test_killed_at_random_instants(killing, seconds):
    draw, killed, resumed = random.Random(SEED), 0, 0
    while killed < KILLS:
        stage = draw.choice(STAGES)
        out = f"{stage}-again"
        folder = killing.run / out
        # Once, or again and again: a resumed run is as mortal as the first.
        while draw.random() < 0.7 and not folder.exists():
            # A little past the end, too: publishing is part of it.
            status = killing.kill_after(draw.uniform(0, 1.05) * seconds[stage], stage, out)
            assert status in (0, -9), f"{stage} ended with {status}"
            killed += status == -9
            resumed += partial_path(folder).exists()
        killing.start(stage, out)
        assert killing.wait() == 0, stage
        assert data(folder) == data(killing.run / OUTS[stage]), stage
        assert not partial_path(folder).exists()
        shutil.rmtree(folder)
    # Most deaths left something to go on from.
    assert resumed > KILLS / 4
