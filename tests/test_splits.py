"""A fit keeps the sums of its splits apart: shards that hold whole splits merge to the bytes of one
process, and two halves say how stable the factors are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import contents
from pipeline import CPU, SEQ_LEN, Pipeline
from ranks import same_factors

from inflcli.artifacts import factors as store
from inflcli.artifacts.files import read_tensors
from inflcli.config import PrepareConfig, Shard
from inflcli.stages.fit_shards import fit_shard
from inflcli.stages.merge import merge
from inflcli.stages.prepare import prepare
from inflcli.stages.splits import split_sequences

IN_FLOAT64 = pytest.mark.parametrize("pipeline", ["float64"], indirect=True)
"""Where rounding in float32 would be all that is seen."""


@pytest.fixture(scope="module", params=["float32", "float64"])
def pipeline(request, tiny_model, tiny_text, tmp_path_factory) -> Pipeline:
    made = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"), request.param)
    made.prepare(tiny_text)
    return made


def merged(pipeline: Pipeline, out: str, shards: int, **settings) -> Path:
    config = pipeline.fit_config(**settings)
    for _ in range(2):
        for number in range(shards):
            part = replace(config, shard=Shard(number, shards))
            fit_shard(str(pipeline.model), pipeline.run / "corpus", pipeline.run / out, part, CPU)
        merge(pipeline.run / out, CPU)
    return pipeline.run / out


def content_of(folder: Path) -> tuple[dict, dict]:
    """The manifest but for when and how it was made, and the digests of the other files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("timings", "command"):
        del manifest[key]
    digests = contents(folder)
    del digests["manifest.json"]
    return manifest, digests


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_shards_of_whole_splits_merge_to_the_same_bytes(pipeline, shards, precision):
    settings = {"splits": 4, "precision": precision, "blocks": 2}
    whole = pipeline.run / f"whole-{precision}"
    if not whole.is_dir():
        pipeline.fit(whole.name, **settings)
    assert content_of(merged(pipeline, f"{precision}-{shards}", shards, **settings)) == content_of(
        whole
    )


@IN_FLOAT64
@pytest.mark.parametrize("splits", [1, 3, 64])
def test_the_same_factors_in_any_number_of_splits(pipeline, splits):
    """To rounding: batches are others. 64 are more than there are sequences."""
    if not (pipeline.run / "factors").is_dir():
        pipeline.fit()
    out = pipeline.fit(f"splits-{splits}", splits=splits)
    same_factors(out, pipeline.run / "factors", 1e-6)


@IN_FLOAT64
def test_the_agreement_is_that_of_two_fits(pipeline, tmp_path):
    """Each half summed by itself: its A and S, and its Λ in the eigenvectors of both."""
    both = pipeline.fit("both", splits=2, labels="true")
    half = [sums_of_half(pipeline, number) for number in (0, 1)]
    found = {side: store.read_agreements(both, side) for side in ("A", "S", "corrected")}
    for side in ("A", "S"):
        for name, agreement in found[side].items():
            one, other = (mirrored(sums[f"0/{side}:{name}:0"]) for sums, _ in half)
            cosine = (one * other).sum() / (one.norm() * other.norm())
            assert agreement == pytest.approx(float(cosine), abs=1e-9)
    for name, agreement in found["corrected"].items():
        logs = []
        for _, sums in half:
            mean = sums[f"0/{name}"]
            logs.append(torch.log(mean + 0.1 * mean.mean()).flatten().numpy())
        assert agreement == pytest.approx(np.corrcoef(*logs)[0, 1], abs=1e-5)
    stability = store.FactorsReader.open(both).artifact.manifest.details["stability"]
    assert stability["corrected"]["least"] == min(found["corrected"].values())
    assert stability["covariances"]["least"] == min(*found["A"].values(), *found["S"].values())


def sums_of_half(pipeline: Pipeline, number: int) -> list[dict[str, torch.Tensor]]:
    """A, S and Λ of one of two shards, whose only split is all that they have."""
    settings = {"splits": 1, "labels": "true"}
    if not (pipeline.run / "halves").is_dir():
        merged(pipeline, "halves", 2, **settings)
    phases = [pipeline.run / "halves.shards" / phase for phase in ("covariance", "corrected")]
    return [read_tensors(phase / f"{number}-of-2" / "sums.0.safetensors") for phase in phases]


def mirrored(block: torch.Tensor) -> torch.Tensor:
    return block.triu() + block.triu(1).T


def test_halves_that_are_the_same_agree_wholly(pipeline, tiny_text, tmp_path):
    twice = tmp_path / "twice.jsonl"
    lines = tiny_text.read_text().splitlines()
    twice.write_text("\n".join([*lines, *lines]) + "\n")
    config = PrepareConfig(seq_len=SEQ_LEN, per_line=True)
    prepare([str(twice)], str(pipeline.model), tmp_path / "corpus", config, CPU)
    doubled = replace(pipeline, run=tmp_path).fit(labels="true")
    for side in ("A", "S", "corrected"):
        assert min(store.read_agreements(doubled, side).values()) > 1 - 1e-6


def test_one_split_knows_nothing_of_its_stability(pipeline):
    alone = pipeline.fit("alone", splits=1)
    assert store.FactorsReader.open(alone).artifact.manifest.details["stability"] == {}


@pytest.mark.parametrize("count", [1, 5, 12, 97])
@pytest.mark.parametrize("splits", [1, 2, 4, 7])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_share_out_every_split(count, splits, shards):
    ids = np.arange(count) * 3
    whole = split_sequences(ids, splits)
    assert np.array_equal(np.concatenate(whole), ids)
    parts = [split_sequences(ids, splits, Shard(number, shards)) for number in range(shards)]
    for split in range(splits):
        assert np.array_equal(np.concatenate([part[split] for part in parts]), whole[split])
    if splits % shards == 0:
        assert all(
            len(part[split]) in (0, len(whole[split])) for part in parts for split in range(splits)
        )


def test_the_report_says_how_stable_the_factors_are(pipeline, tiny_queries):
    factors = pipeline.run / "factors"
    if not factors.is_dir():
        pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.tfidf_filter(tiny_queries)
    pipeline.scan()
    pipeline.attribute()
    page = (pipeline.report() / "index.html").read_text()
    details = store.FactorsReader.open(factors).artifact.manifest.details
    median = details["stability"]["corrected"]["median"]
    assert "Split-half stability" in page
    assert f"r of log(Λ + λ) {median:.3f}" in page
