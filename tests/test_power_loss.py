"""The power may fail at any instant: what was not fsynced is lost, in the worst of cases (power.py
says how), and the same command still ends with the bytes of a run that nothing stopped, from where
it last recorded its progress. What a stage called finished is there. `make soak` tries more.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from killing import OUTS, STAGES, run_stage
from pipeline import CPU, Pipeline
from power import Recording, State, lay, recording
from test_killed_anywhere import data

from inflcli.artifacts.folder import damaged_files
from inflcli.artifacts.ledger import Ledger
from inflcli.artifacts.manifest import read_manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.stages import tfidf_filter as tfidf_stage
from inflcli.stages import tokenising

LOSSES = int(os.environ.get("INFLCLI_LOSSES", "12"))
"""Instants of each stage."""
SEED = int(os.environ.get("INFLCLI_SEED", "0"))
LONG = [stage for stage in STAGES if stage != "report"]
"""Stages that record their progress."""


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    """A run that nothing stopped. In it and in the tests pieces are small and all recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenising, "CHUNK_ROWS", 3)
        patch.setattr(tokenising, "BATCH_PIECES", 9)
        patch.setattr(tfidf_stage, "BLOCK", 9)
        runtime = replace(CPU, checkpoint_seconds=0.0)
        pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32", runtime)
        for stage in STAGES:
            run_stage(pipeline, stage, OUTS[stage], tiny_text, tiny_queries)
        yield pipeline


@dataclass
class Loss:
    """What was left of a stage's folder, and what should have been."""

    event: int
    """Which of the recording's; -1 for right after the stage."""
    state: State
    partial: str
    promised: set[bytes | None] = field(default_factory=set)
    """The last progress that a stage may rely on, or that it is just recording."""

    def kept_its_promise(self) -> bool:
        """Whether no progress is lost, or everything is there."""
        whole = f"{self.partial}/manifest.json", self.partial.removesuffix(".partial")
        if any(name in self.state for name in whole):
            return True
        return self.state.get(f"{self.partial}/progress.json") in self.promised


@dataclass
class Bench:
    """A stage that writes `root/OUT`, from what `before` holds."""

    pipeline: Pipeline
    stage: str
    text: Path
    queries: Path
    root: Path
    before: State = field(default_factory=dict)
    other: dict[str, Any] | None = None
    """Settings of what the power is lost in, where they are not those of the stage."""

    @property
    def out(self) -> Path:
        return self.root / OUTS[self.stage]

    def reset(self, state: State) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        lay(state, self.root)

    def work(self) -> None:
        run_stage(self.pipeline, self.stage, self.name, self.text, self.queries)

    @property
    def name(self) -> str:
        return f"{self.root.name}/{self.out.name}"

    def lost_work(self) -> None:
        if self.other is None:
            self.work()
        else:
            getattr(self.pipeline, self.stage)(self.name, **self.other)

    def losses(self, draw: random.Random) -> list[Loss]:
        """At random instants, and right after the stage."""
        self.reset(self.before)
        with recording(self.root) as one:
            self.lost_work()
        # Threads make the number of events differ a little from run to run.
        instants = {draw.randint(1, one.events) for _ in range(LOSSES)}
        if self.other is not None:  # what was there is discarded at the beginning
            instants = set(range(1, 3 * LOSSES))
        progress = self.out.with_name(f"{self.out.name}.partial") / "progress.json"
        found, promised = [], [read(progress)]

        def at(now: Recording, event: int) -> None:
            if event in instants:
                state = now.after_loss(draw)
                found.append(
                    Loss(event, state, progress.parent.name, {promised[0], read(progress)})
                )

        record = Ledger.record

        def record_and_note(self: Ledger, *arguments, **options) -> None:
            record(self, *arguments, **options)
            promised[0] = read(progress)

        self.reset(self.before)
        with pytest.MonkeyPatch.context() as patch, recording(self.root, at) as one:
            patch.setattr(Ledger, "record", record_and_note)
            self.lost_work()
            found.append(Loss(-1, one.after_loss(draw), progress.parent.name))
        return found


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@pytest.fixture
def bench(whole, tiny_text, tiny_queries, tmp_path):
    def make(stage: str, pipeline: Pipeline = whole) -> Bench:
        root = whole.run / f"{stage}-lost"
        return Bench(pipeline, stage, tiny_text, tiny_queries, root)

    return make


def check(bench: Bench, draw: random.Random, *, progress: bool) -> None:
    expected = data(bench.pipeline.run / OUTS[bench.stage])
    with_progress = 0
    for loss in bench.losses(draw):
        bench.reset(loss.state)
        what = f"{bench.stage}, power lost at event {loss.event}"
        if loss.event == -1:
            assert bench.out.is_dir(), what
            assert not damaged_files(bench.out, read_manifest(bench.out)), what
        else:
            assert bench.other or loss.kept_its_promise(), what
            with_progress += f"{loss.partial}/progress.json" in loss.state
        bench.work()
        assert data(bench.out) == expected, what
        assert [path.name for path in bench.root.iterdir() if path.is_dir()] == [bench.out.name]
    assert with_progress or not progress


@pytest.mark.parametrize("stage", STAGES)
def test_from_nothing(bench, stage):
    check(bench(stage), random.Random(f"{SEED} {stage}"), progress=stage in LONG)


@pytest.mark.parametrize("stage", ["prepare", "scan", "attribute"])
def test_over_another_artifact(bench, whole, stage):
    """What was made with other settings stays until the new one is whole."""
    one = bench(stage, replace(whole, runtime=replace(whole.runtime, overwrite=True)))
    one.reset({})
    if stage == "prepare":
        whole.prepare(one.text, one.name, seq_len=12)
    else:
        getattr(whole, stage)(one.name, top_k=2)
    one.before = state_of(one.root)
    check(one, random.Random(f"{SEED} over {stage}"), progress=True)


@pytest.mark.parametrize("stage", ["scan", "attribute"])
def test_over_a_damaged_artifact(bench, whole, stage):
    """What of it is sound is kept."""
    one = bench(stage, replace(whole, runtime=replace(whole.runtime, overwrite=True)))
    shutil.rmtree(one.root, ignore_errors=True)
    shutil.copytree(whole.run / OUTS[stage], one.out)
    one.before = state_of(one.root)
    victim = next(name for name in one.before if name.endswith("_scores/c/0/1/0") or
                  name.endswith("token_scores/c/1/0/0/0"))  # fmt: skip
    one.before[victim] = b"damaged"
    check(one, random.Random(f"{SEED} damaged {stage}"), progress=True)


@pytest.mark.parametrize("stage", ["scan", "attribute"])
def test_a_discarded_run(bench, whole, stage):
    """What is left of it while another is begun in its place is nothing to go on from."""
    one = bench(stage, replace(whole, runtime=replace(whole.runtime, overwrite=True)))
    one.reset({})
    commit = ArtifactWriter.commit
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ArtifactWriter, "commit", stop_after(commit, 2))
        one.work()
    one.before = state_of(one.root)
    assert f"{one.out.name}.partial/progress.json" in one.before
    one.other = {"top_k": 2}
    check(one, random.Random(f"{SEED} discarded {stage}"), progress=True)


def stop_after(commit: Callable[..., None], count: int) -> Callable[..., None]:
    calls = [0]

    def commit_or_stop(*arguments: Any, **options: Any) -> None:
        commit(*arguments, **options)
        calls[0] += 1
        if calls[0] == count:
            raise KeyboardInterrupt

    return commit_or_stop


def state_of(folder: Path) -> State:
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def test_the_model_forgets(tmp_path):
    """A write without fsync, a name without its folder's, a rename: each may be lost or not; none
    of them is once it is synced."""
    root = tmp_path / "root"
    root.mkdir()
    lay({"old": b"old"}, root)
    states = {"unsynced": set(), "synced": set(), "named": set(), "moved": set()}
    draw = random.Random(0)

    def some(name: str, one: Recording, file: str) -> None:
        states[name] = {one.after_loss(draw).get(file, "no name") for _ in range(60)}

    def fsync(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    with recording(root) as one:
        (root / "new").write_bytes(b"content")
        some("unsynced", one, "new")
        fsync(root / "new")
        some("synced", one, "new")
        fsync(root)
        some("named", one, "new")
        (root / "folder").mkdir()
        (root / "new").rename(root / "folder/new")
        both = [one.after_loss(draw) for _ in range(60)]
    assert states["unsynced"] == {"no name", b"", b"con", bytes(7), b"content"}
    assert states["synced"] == {"no name", b"content"}
    assert states["named"] == {b"content"}
    assert {("new" in state, "folder/new" in state) for state in both} == {
        (True, False), (False, True)
    }  # fmt: skip
    assert all(state["old"] == b"old" for state in both)
