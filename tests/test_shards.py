"""Shards that know nothing of each other merge to what one process writes: scans and attributions
byte for byte, factors to the order of their sums; what does not go together is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call, contents, refuse
from oracle import relative
from pipeline import CPU, Pipeline, scores

from inflcli.artifacts import factors as factor_store
from inflcli.config import Shard
from inflcli.stages.fit_shards import fit_shard
from inflcli.stages.merge import merge

COUNTS = (1, 2, 4, 50)
"""50 shards are more than there are chunks and queries: some have nothing to do."""


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    """A chain that one process ran."""
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit(blocks=2)
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    pipeline.attribute()
    yield pipeline


def shards_of(pipeline: Pipeline, stage: str, out: str, count: int) -> Path:
    for number in range(count):
        shard = Shard(number, count)
        folder = str(shard.folder(Path(out)))
        getattr(pipeline, stage)(folder, shard=shard)
    return pipeline.run / out


def fit_shards(pipeline: Pipeline, out: str, count: int, **settings) -> Path:
    """Both rounds, and both mergings."""
    for _ in range(2):
        for number in reversed(range(count)):
            config = replace(pipeline.fit_config(blocks=2, **settings), shard=Shard(number, count))
            fit_shard(str(pipeline.model), pipeline.run / "corpus", pipeline.run / out, config, CPU)
        merge(pipeline.run / out, CPU)
    return pipeline.run / out


def same_but_for_timings(found: Path, expected: Path) -> None:
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (found, expected)]
    for manifest in manifests:
        del manifest["timings"], manifest["command"]
    assert manifests[0] == manifests[1]
    files = [contents(path) for path in (found, expected)]
    for one in files:
        del one["manifest.json"]
    assert files[0] == files[1]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("stage", ["scan", "attribute"])
def test_merged_shards_are_the_whole_byte_for_byte(whole, stage, count):
    out = shards_of(whole, stage, f"{stage}-{count}", count)
    merge(out, CPU)
    same_but_for_timings(out, whole.run / {"attribute": "attribution"}.get(stage, stage))
    assert merge(out, CPU)["fresh"]


@pytest.mark.parametrize("count", COUNTS)
def test_factors_of_shards(whole, count):
    """A, S and Λ; eigenvectors are theirs up to sign, so what they make up is compared."""
    out = fit_shards(whole, f"factors-{count}", count)
    expected = whole.run / "factors"
    for module in factor_store.FactorsReader.open(out).modules:
        name = module["name"]
        pairs = [
            [factor_store.read_output(folder, name) for folder in (out, expected)],
            [factor_store.read_input(folder, module["shares_input_with"])
             for folder in (out, expected)],
        ]  # fmt: skip
        for found, right in pairs:
            assert relative(found.values, right.values) < 1e-9
        corrected = [factor_store.read_corrected(folder, name) for folder in (out, expected)]
        assert relative(*corrected) < 1e-6
    counts = [factor_store.FactorsReader.open(f).artifact.manifest.counts for f in (out, expected)]
    assert counts[0] == counts[1]
    assert factor_store.FactorsReader.open(out).artifact.fingerprint == (
        factor_store.FactorsReader.open(expected).artifact.fingerprint
    )


def test_scores_with_merged_factors(whole, tiny_queries):
    fit_shards(whole, "factors-scored", 3)
    whole.precondition(tiny_queries, "queries-scored", "factors-scored")
    found = scores(whole.scan("scan-scored", "queries-scored"))
    assert relative(torch.from_numpy(found), torch.from_numpy(scores(whole.run / "scan"))) < 1e-6


def test_kfac_needs_one_round(whole):
    config = replace(whole.fit_config(curvature="kfac"), shard=Shard(0, 1))
    fit_shard(str(whole.model), whole.run / "corpus", whole.run / "kfac", config, CPU)
    merge(whole.run / "kfac", CPU)
    assert factor_store.FactorsReader.open(whole.run / "kfac").curvature == "kfac"


def test_merging_is_the_same_every_time(whole):
    out = fit_shards(whole, "factors-twice", 3)
    before = contents(out)
    shutil.rmtree(out)
    shutil.rmtree(whole.run / "factors-twice.shards" / "bases")
    for _ in range(2):
        merge(out, CPU)
    after = contents(out)
    del before["manifest.json"], after["manifest.json"]
    assert before == after


def test_what_is_missing_is_named(whole):
    out = shards_of(whole, "scan", "missing", 3)
    shards = whole.run / "missing.shards"
    (shards / "1-of-3").rename(shards / "1-of-3.partial")
    refuse(call("merge", out), 3, "shard 1/3", "not finished", "--shard 1/3")
    shutil.rmtree(shards / "1-of-3.partial")
    refuse(call("merge", out), 3, "shard 1/3", "missing")
    refuse(call("merge", whole.run / "nothing"), 3, "no shards")


def test_a_complete_shard_is_left_alone(whole):
    where = ("--model", whole.model, "--queries", whole.run / "queries", "--corpus",
             whole.run / "corpus", "--out", whole.run / "again", "--dtype", "float64")  # fmt: skip
    answers = [json.loads(call("scan", *where, "--shard", "0/2", "--json").stdout) for _ in "12"]
    assert [answer["fresh"] for answer in answers] == [False, True]
    fit = ("--model", whole.model, "--corpus", whole.run / "corpus", "--out", whole.run / "fitted")
    answers = [json.loads(call("fit-factors", *fit, "--shard", "1/2", "--json").stdout)
               for _ in "12"]  # fmt: skip
    assert [answer["fresh"] for answer in answers] == [False, True]


def test_divisions_do_not_mix(whole):
    out = shards_of(whole, "scan", "mixed", 2)
    shutil.copytree(whole.run / "mixed.shards/0-of-2", whole.run / "mixed.shards/0-of-3")
    refuse(call("merge", out), 2, "2 and 3 divisions")


def test_other_settings_do_not_mix(whole):
    out = shards_of(whole, "scan", "settings", 2)
    shutil.rmtree(whole.run / "settings.shards/1-of-2")
    whole.scan("settings.shards/1-of-2", shard=Shard(1, 2), top_k=3)
    refuse(call("merge", out), 3, "top-k was 100, now 3")


def test_a_damaged_shard_is_named(whole):
    out = shards_of(whole, "scan", "damaged", 2)
    below = (whole.run / "damaged.shards/1-of-2/scores/c").rglob("*")
    victim = next(path for path in below if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    refuse(call("merge", out), 4, str(victim.name), "1-of-2")


def test_a_shard_is_no_scan(whole):
    shards_of(whole, "scan", "alone", 2)
    where = ("--model", whole.model, "--queries", whole.run / "queries", "--corpus",
             whole.run / "corpus", "--out", whole.run / "refused")  # fmt: skip
    refuse(call("attribute", *where, "--scan", whole.run / "alone.shards/0-of-2"), 2, "is a shard")
    refuse(call("attribute", *where, "--scan", whole.run / "alone"), 3, "inflcli merge")


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "0/0", "a/b"])
def test_refused_shards(whole, text):
    where = ("--model", whole.model, "--queries", whole.run / "queries", "--corpus",
             whole.run / "corpus", "--out", whole.run / "refused")  # fmt: skip
    refuse(call("scan", *where, "--shard", text), 2, "--shard")
