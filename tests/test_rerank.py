"""Invariant: ranking a scan by some layers gives what a scan of these layers gives, and a report
takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline import CPU, Pipeline, scores

from inflcli.artifacts.scan import ScanReader
from inflcli.errors import BadInput
from inflcli.stages.rerank import rerank


@pytest.fixture(scope="module")
def run(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan(top_k=5)
    return pipeline


@pytest.mark.parametrize("layers", ["0", "middle", "0-1"])
def test_it_is_the_scan_of_these_layers(run: Pipeline, tmp_path: Path, layers: str) -> None:
    rerank(run.run / "scan", tmp_path / "ranked", layers, 5, CPU)
    run.scan(f"of-{layers}", layers=layers, top_k=5)
    found, meant = (ScanReader.open(p) for p in (tmp_path / "ranked", run.run / f"of-{layers}"))
    np.testing.assert_allclose(scores(found.artifact.path), scores(meant.artifact.path), rtol=1e-6)
    assert found.group_names == meant.group_names
    assert found.group_of == meant.group_of
    for mine, theirs in zip(found.top(), meant.top(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_an_attribution_and_a_report_take_it(run: Pipeline) -> None:
    rerank(run.run / "scan", run.run / "ranked", "1", 5, CPU)
    run.attribute("attributed", scan="ranked", top_k=3)


def test_layers_that_cut_through_a_group_are_refused(run: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cuts through"):
        rerank(run.run / "scan", tmp_path / "cut", "*down_proj", 5, CPU)
    assert not (tmp_path / "cut").exists()


def test_it_resumes_to_the_same_bytes_after_damage(run: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "ranked"
    rerank(run.run / "scan", out, "0", 5, CPU)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    victim = next(path for path in sorted(before) if "/scores/c/0/1" in str(path))
    victim.write_bytes(b"")
    done = rerank(run.run / "scan", out, "0", 5, CPU.__class__(device="cpu", overwrite=True))
    assert not done["fresh"]
    assert victim.read_bytes() == before[victim]
