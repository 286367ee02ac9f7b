"""Memory does not grow with the corpus: neither prepare nor scan holds tokens or scores.

Peak RSS of a process, at 2,000 and 20,000 sequences. Most of it is imports and the model, which
hide what grows; so what a stage adds to them is held to a few numbers a sequence, too, which a
process that keeps each block of tokens or scores is shown to exceed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from corpus_fixtures import environment, write_queries
from pipeline import CPU, Pipeline

import inflcli

HERE = Path(__file__).parent
DEMO = Path(inflcli.__file__).parent / "demo"
FEW, MANY = 2_000, 20_000
QUERIES = 100
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
"""Threads that come and go hold memory of their own, more or less of it."""
LARGEST = 1000
"""Bytes a sequence: buffers fill up (most of it), batches are planned ahead, lengths are held. A
sequence's tokens take 2,000 as lists, its scores 3,600 where each copy of them is kept."""


@dataclass(frozen=True)
class Memory:
    """RSS in bytes."""

    imports: int
    stage: int
    """Its peak, imports included."""
    process: int
    """The peak of all, which may be that of the imports."""

    def __str__(self) -> str:
        added = self.stage - self.imports
        return f"{self.process / 2**20:.0f} MiB, of which the stage {added / 2**20:.1f}"


def measure(stage: str, pipeline: Pipeline, run: Path, text: Path, *more: str) -> Memory:
    run.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, HERE / "memory.py", stage, pipeline.model, run, text, *more],
        capture_output=True, text=True, check=False, env={**environment(), **ONE_THREAD},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Memory(*(int(word) * 1024 for word in done.stdout.split()))


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[int, Path]:
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    words = ("sun", "star", "water", "boils", "river", "stone", "green", "light", "moon", "two")
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=30))}) for _ in range(MANY)]
    found = {count: folder / f"{count}.jsonl" for count in (FEW, MANY)}
    for count, path in found.items():
        path.write_text("\n".join(lines[:count]) + "\n")
    return found


@pytest.fixture(scope="module")
def pipeline(tiny_model, tmp_path_factory) -> Pipeline:
    return Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("runs"), "float32", CPU)


@pytest.fixture(scope="module")
def prepared(pipeline, texts) -> dict[str, Memory]:
    """A run for each text, with what its prepare took."""
    return {
        str(count): measure("prepare", pipeline, pipeline.run / str(count), texts[count])
        for count in (FEW, MANY)
    }


@pytest.fixture(scope="module")
def runs(pipeline, prepared, texts) -> dict[int, Path]:
    """Each with the same queries, of factors fitted on a few sequences."""
    few = Pipeline(pipeline.model, pipeline.run / str(FEW), "float32", CPU)
    pairs = [(f"The {number} moon", " sun") for number in range(QUERIES)]
    few.fit(max_sequences=20)
    few.precondition(write_queries(pipeline.run / "q.jsonl", *pairs), rank=2)
    (pipeline.run / str(MANY) / "queries").symlink_to(few.run / "queries")
    return {count: pipeline.run / str(count) for count in (FEW, MANY)}


def flat(few: Memory, many: Memory) -> bool:
    grown = (many.stage - many.imports) - (few.stage - few.imports)
    per_sequence = grown / (MANY - FEW)
    print(f"{few}; {many}; {per_sequence:.0f} bytes a sequence")
    return many.process < 1.1 * few.process and per_sequence < LARGEST


def test_prepare(prepared):
    assert flat(*prepared.values())


def test_scan(pipeline, runs, texts):
    assert flat(*(measure("scan", pipeline, runs[n], texts[n]) for n in (FEW, MANY)))


@pytest.mark.long
@pytest.mark.parametrize("stage", ["prepare", "scan"])
def test_holding_on_would_be_seen(pipeline, runs, texts, prepared, tmp_path, stage):
    few = prepared[str(FEW)]
    run = tmp_path
    if stage == "scan":
        for name in ("queries", "corpus"):
            (run / name).symlink_to(runs[MANY] / name)
        few = measure("scan", pipeline, runs[FEW], texts[FEW])
    many = measure(stage, pipeline, run, texts[MANY], "LEAK")
    assert not flat(few, many)


@pytest.mark.long
def test_scan_of_lengths_that_all_differ(tmp_path):
    """The demo's paragraphs, once and ten times: hardly two batches have the same longest one."""
    text = (DEMO / "corpus.jsonl").read_text()
    run = Pipeline(DEMO / "model", tmp_path, "float32", replace(CPU, batch_size=None))
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        path.write_text(text * times)
        run.prepare(path, f"corpus {times}", seq_len=256)
    run.fit(corpus="corpus 1", max_sequences=40)
    run.precondition(DEMO / "queries.jsonl", keep=0.995)
    for times in (1, 10):
        command = [sys.executable, "-m", "inflcli", "scan", "--model", run.model, "--quiet"]
        command += ["--queries", tmp_path / "queries", "--corpus", tmp_path / f"corpus {times}"]
        with subprocess.Popen([*command, "--out", tmp_path / f"scan {times}"]) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    print(", ".join(f"{peak / 1024:.0f} MiB" for peak in peaks))
    assert peaks[1] < 1.1 * peaks[0]
