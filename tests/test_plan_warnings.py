"""A plan warns of what does not fit, and the option that it names mends it."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from commands import call

from inflcli.stages import plan as stage
from inflcli.stages.planning import task

GIB = 2**30
USUAL = ("--seq-len", 64, "--no-calibrate", "--json", "--device", "cpu")


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def planned(model: Path, *options: object) -> dict[str, Any]:
    words = [str(word) for word in options]
    given = () if "--sequences" in words else ("--sequences", 100)
    queries = () if "--n-queries" in words else ("--n-queries", 3)
    found = call("plan", "--model", model, *given, *queries, *USUAL, *options)
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    for warning in result["warnings"]:
        assert warning.split(":")[0] in found.stderr
    return result


def of(result: dict[str, Any], words: str) -> list[str]:
    return [warning for warning in result["warnings"] if words in warning]


def test_nothing_is_said_when_all_fits(model):
    assert planned(model, "--max-memory", 1)["warnings"] == []


def test_sums_that_do_not_fit(model):
    """Those of the covariances are 17,920 bytes; Λ and its bases are more."""
    memory = 10_000 / GIB
    result = planned(model, "--max-memory", memory)
    passes = of(result, "passes over the sequences")
    assert {line.split("holds")[0] for line in passes} == {
        "fit-factors: covariance ",
        "fit-factors: corrected ",
    }
    blocks = re.search(r"--blocks (\d+)", passes[0])
    assert blocks, passes
    mended = planned(model, "--max-memory", memory, "--blocks", blocks[1])
    assert mended["fit_passes"]["covariance"] == 1 < result["fit_passes"]["covariance"]
    more = re.search(r"--max-memory (\S+)", passes[0])
    assert more
    assert not of(planned(model, "--max-memory", more[1]), "passes over the sequences")


def test_queries_that_do_not_fit(model):
    options = ("--max-memory", 3_000_000 / GIB, "--n-queries", 1000)
    (line,) = of(planned(model, *options), "the queries take")
    rank = re.search(r"--rank (\d+)", line)
    assert rank, line
    assert not of(planned(model, *options, "--rank", rank[1]), "the queries take")
    fewer = re.search(r"(\d+) queries at a time", line)
    assert fewer
    again = ("--max-memory", 3_000_000 / GIB, "--n-queries", fewer[1])
    assert not of(planned(model, *again), "the queries take")


def test_a_day_that_is_too_short(model):
    options = ("--max-memory", 1, "--sequences", 10**11)
    result = planned(model, *options)
    lines = of(result, "days")
    stages = {"fit-factors", "scan"}
    assert {line.split(":")[0] for line in lines} == stages | {"prepare", "tfidf-filter"}
    shards = max(int(found[1]) for line in lines if (found := re.search(r"--shard I/(\d+)", line)))
    left = of(planned(model, *options, "--shards", shards), "days")
    assert not {line.split(":")[0] for line in left} & stages


def test_a_disk_that_is_too_small(model, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: usage(10, 5, 5))
    (line,) = of(planned(model, "--max-memory", 1), "disk:")
    assert "5 B are free" in line


def test_a_device_that_is_too_small(model, monkeypatch):
    monkeypatch.setattr(task, "available", lambda device: 1000.0)
    lines = of(planned(model, "--max-memory", 1), "1000 B are free")
    assert {line.split(":")[0] for line in lines} == {
        "fit-factors",
        "precondition",
        "scan",
        "attribute",
    }
