"""A run that was stopped anywhere goes on with the same command and leaves the same bytes.

Interrupted before and after every record of progress, at writes chosen at random, and killed
outright: every data file then equals an uninterrupted run's, and so does the manifest but for its
timings.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import contents
from oracle import relative
from pipeline import CPU, Pipeline, scores
from safetensors.torch import load_file
from torch import Tensor

from inflcli.artifacts import attribution as attribution_store
from inflcli.artifacts import files, writer
from inflcli.artifacts import scan as scan_store
from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.folder import partial_path
from inflcli.artifacts.ledger import Ledger
from inflcli.artifacts.writer import ArtifactWriter

STAGES = ("fit", "precondition", "scan", "attribute")
OUTS = {"fit": "factors", "precondition": "queries", "scan": "scan", "attribute": "attribution"}


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    """A chain that was never stopped, with a record of progress after every small piece."""
    runtime = replace(CPU, checkpoint_seconds=0.0, batch_size=9)
    run = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(tiny_model("gpt2"), run, "float32", runtime)
    pipeline.prepare(tiny_text)
    for stage in STAGES:
        run_stage(pipeline, stage, OUTS[stage], tiny_queries)
    yield pipeline


def run_stage(pipeline: Pipeline, stage: str, out: str, queries: Path) -> Path:
    """One stage on the whole chain's inputs."""
    if stage == "fit":
        return pipeline.fit(out, max_sequences=30)
    if stage == "precondition":  # a query at a time, so that there is something to resume
        return pipeline.with_batches(1).precondition(queries, out, rank=3)
    return getattr(pipeline, stage)(out)


def assert_same(found: Path, expected: Path) -> None:
    files_found, files_expected = contents(found), contents(expected)
    for one in (files_found, files_expected):
        del one["manifest.json"]
    assert files_found == files_expected
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (found, expected)]
    for manifest in manifests:
        del manifest["timings"]
    assert manifests[0] == manifests[1]
    assert not partial_path(found).exists()
    made_to_resume = ("state.", "chunk.", "progress.json", "identity.json")
    assert not [name for name in files_found if name.startswith(made_to_resume)]


@contextmanager
def stopped(patch: pytest.MonkeyPatch, owner: Any, name: str, allowed: int, *, after: bool) -> Any:
    """`owner.name` works `allowed` times; then it is interrupted before or after its work."""
    original, left = getattr(owner, name), [allowed]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0 and not after:
            raise KeyboardInterrupt
        result = original(*arguments, **options)
        if left[0] < 0 or (left[0] == 0 and after):
            raise KeyboardInterrupt
        return result

    with patch.context() as inner:
        inner.setattr(owner, name, interrupted)
        yield


def run_until_done(
    run: Callable[[], Path], interruption: Callable[[], Any], out: Path, limit: int
) -> int:
    """Run with interruptions until the artifact is there; how many there were."""
    for count in range(limit):
        try:
            with interruption():
                run()
        except KeyboardInterrupt:
            assert not out.exists()
            continue
        assert out.exists()
        return count
    raise AssertionError(f"not done after {limit} runs")


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_at_every_record_of_progress(whole, tiny_queries, monkeypatch, stage, after):
    """After each record, or after one record and right before the next."""
    out = f"{stage}-{after}"
    count = run_until_done(
        lambda: run_stage(whole, stage, out, tiny_queries),
        lambda: stopped(monkeypatch, Ledger, "record", 1, after=after),
        whole.run / out,
        limit=40,
    )
    assert count >= (3 if after else 2)
    assert_same(whole.run / out, whole.run / OUTS[stage])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_at_random_writes(whole, tiny_queries, monkeypatch, stage, seed):
    """Between the writes that belong together, too."""
    draw, out = random.Random(seed), f"{stage}-random-{seed}"
    owners = {"scan": scan_store, "attribute": attribution_store}

    @contextmanager
    def interruption() -> Iterator[None]:
        # The fit writes all eigenvectors before it records them, the others little at a time.
        most, after = draw.randint(2, 25 if stage == "fit" else 6), draw.random() < 0.5
        with stopped(monkeypatch, files, "write_bytes", most, after=after):
            if stage not in owners:
                yield
                return
            most = draw.randint(1, 3)
            with stopped(monkeypatch, owners[stage], "write", most, after=after):
                yield

    count = run_until_done(
        lambda: run_stage(whole, stage, out, tiny_queries), interruption, whole.run / out, limit=40
    )
    assert count >= 1
    assert_same(whole.run / out, whole.run / OUTS[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_while_publishing(whole, tiny_queries, monkeypatch, stage):
    """When all is written: before the manifest, before the leftovers go, before the renaming.
    Before the manifest is there the run goes on; with it, all that is left is the renaming."""
    out = f"{stage}-publishing"
    points = [
        (writer, "describe_files"),
        (ArtifactWriter, "_publish"),
        (writer, "_leftovers"),
        (Path, "rename"),
    ]
    for owner, name in points:
        with (
            pytest.raises(KeyboardInterrupt),
            stopped(monkeypatch, owner, name, 0, after=False),
        ):
            run_stage(whole, stage, out, tiny_queries)
        assert not (whole.run / out).exists()
    run_stage(whole, stage, out, tiny_queries)
    assert_same(whole.run / out, whole.run / OUTS[stage])


def eigenvalues(folder: Path) -> Tensor:
    """Every eigenvalue of the factors: those of A and S, and Λ."""
    found = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    return torch.cat([one.get("corrected", one.get("values")).double().flatten() for one in found])


READ: dict[str, Callable[[Path], Tensor]] = {
    "fit": eigenvalues,
    "scan": lambda folder: torch.from_numpy(scores(folder)),
    "attribute": lambda folder: torch.from_numpy(AttributionReader.open(folder).token_scores(2)),
}


@pytest.mark.parametrize("stage", READ)
def test_resumed_with_other_batches(whole, tiny_queries, monkeypatch, stage):
    """The batch size is no part of a run: what is left of it may be done in others."""
    out = f"{stage}-batches"
    with (
        pytest.raises(KeyboardInterrupt),
        stopped(monkeypatch, Ledger, "record", 2, after=True),
    ):
        run_stage(whole, stage, out, tiny_queries)
    run_stage(whole.with_batches(4), stage, out, tiny_queries)
    found, expected = (READ[stage](whole.run / name) for name in (out, OUTS[stage]))
    assert relative(found, expected) < 1e-5


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.ledger import Ledger
from pipeline import CPU, Pipeline

record, left = Ledger.record, [int(sys.argv[5])]

def dying(self, *arguments):
    record(self, *arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.record = dying
runtime = replace(CPU, checkpoint_seconds=0.0, batch_size=9)
pipeline = Pipeline(Path(sys.argv[2]), Path(sys.argv[3]), "float32", runtime)
if sys.argv[4] == "fit":
    pipeline.fit("fit-killed", max_sequences=30)
else:
    pipeline.scan("scan-killed")
"""


@pytest.mark.parametrize(("stage", "commits"), [("fit", 7), ("scan", 3)])
def test_killed(whole, tiny_queries, stage, commits):
    out = whole.run / f"{stage}-killed"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, here, whole.model, whole.run, stage, str(commits)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert partial_path(out).is_dir()
    assert not out.exists()
    run_stage(whole, stage, out.name, tiny_queries)
    assert_same(out, whole.run / OUTS[stage])
