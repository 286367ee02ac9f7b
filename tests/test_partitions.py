"""Where the sums of a fit do not fit into memory, it makes more passes to the same factors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline import Pipeline

from inflcli.artifacts.ledger import Ledger
from inflcli.model.tracked import TrackedModule
from inflcli.stages.fit_plan import partition


def module(name: str, shares: str | None = None) -> TrackedModule:
    return TrackedModule(name, 4, 4, False, 0, shares or name)


MODULES = [module("q"), module("k", "q"), module("v", "q"), module("up"), module("down")]
SIZES = dict.fromkeys(["q", "k", "v", "up", "down"], 10)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (100, [["q", "k", "v", "up", "down"]]),
        (50, [["q", "k", "v", "up", "down"]]),
        (49, [["q", "k", "v", "up"], ["down"]]),
        (39, [["q", "k", "v"], ["up", "down"]]),
        (19, [["q", "k", "v"], ["up"], ["down"]]),
        (0, [["q", "k", "v"], ["up"], ["down"]]),
    ],
)
def test_parts_fill_the_memory_and_keep_sharers_together(memory, expected):
    assert partition(MODULES, SIZES, memory) == expected


@pytest.fixture
def pipeline(tiny_model, tiny_text, tmp_path):
    found = Pipeline(tiny_model("llama"), tmp_path)
    found.prepare(tiny_text)
    return found


def in_parts(pipeline: Pipeline) -> Pipeline:
    return replace(pipeline, runtime=replace(pipeline.runtime, memory_gib=0.0))


def tensor_files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_the_factors_are_the_same(pipeline, curvature):
    """To the last bit: each module's sums add up in the same order."""
    whole = pipeline.fit("whole", modules="all", curvature=curvature)
    parts = in_parts(pipeline).fit("parts", modules="all", curvature=curvature)
    assert tensor_files(whole) == tensor_files(parts)
    assert len(tensor_files(whole)) > 10


@pytest.mark.parametrize("stop_at", [1, 5, 9, 14])
def test_it_resumes_in_the_middle_of_the_parts(pipeline, monkeypatch, stop_at):
    """Also with other memory than before: the parts are those that the run began with."""
    whole = pipeline.fit("whole")
    patient = replace(pipeline, runtime=replace(pipeline.runtime, checkpoint_seconds=0.0))
    record, calls = Ledger.record, []

    def stop(self, *arguments):
        record(self, *arguments)
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            in_parts(patient).fit("parts")
    assert tensor_files(patient.fit("parts")) == tensor_files(whole)
