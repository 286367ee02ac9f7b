"""A damaged shard is named, is not merged, and is mended alone; so is what was merged of shards."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import call, contents, refuse
from pipeline import CPU, Pipeline
from test_damage import delete, flip, mending, truncate
from test_mended_queries import files_of, places
from test_shards import fit_shards, same_but_for_timings, shards_of

from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import Shard
from inflcli.stages.fit_shards import fit_shard
from inflcli.stages.merge import merge

AGAIN = replace(CPU, overwrite=True)
OUTS = {"scan": "scan", "attribute": "attribution"}
VICTIMS = {"scan": "scores/c/0/3", "attribute": "token_scores/c/1/0/0/0"}
"""In the second of two shards."""
COMMAND = ("inflcli", "scan", "--shard", "1/2")


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    runtime = replace(CPU, command=COMMAND)
    run = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(tiny_model("llama-bias"), run, "float64", runtime)
    pipeline.prepare(tiny_text)
    pipeline.fit(blocks=2)
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    pipeline.attribute()
    for stage, out in OUTS.items():
        merge(shards_of(pipeline, stage, f"{out}-2", 2), CPU)
    fit_shards(pipeline, "factors-2", 2)
    return pipeline


@pytest.fixture
def copied(whole, tmp_path):
    """`copied(name)`: the shards and the whole of that name, in a run of their own."""

    def copy(name: str) -> Path:
        for one in (name, f"{name}.shards"):
            shutil.copytree(whole.run / one, tmp_path / one)
        return tmp_path / name

    return copy


def lose_manifest(path: Path, other: Path) -> None:
    (next(part for part in path.parents if "-of-" in part.name) / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [flip, truncate, delete, lose_manifest])
@pytest.mark.parametrize(
    ("name", "victim"),
    [
        ("scan-2", "1-of-2/scores/c/0/3"),
        ("attribution-2", "1-of-2/token_scores/c/1/0/0/0"),
        ("factors-2", "covariance/0-of-2/sums.0.safetensors"),
        ("factors-2", "corrected/1-of-2/sums.0.safetensors"),
    ],
)
def test_status_names_shard_and_file(copied, name, victim, damage):
    path = copied(name)
    shards = path.with_name(f"{name}.shards")
    damage(shards / victim, shards)
    result = call("status", path.parent, "--verify", "--json")
    assert result.exit_code == 4
    artifacts = json.loads(result.stdout)["artifacts"]
    (corrupt,) = (one for one in artifacts if one["state"] == "corrupt")
    shard, _, file = victim.partition("-of-2/")
    assert corrupt["name"] == f"{name}.shards/{shard}-of-2"
    assert (file if damage is not lose_manifest else "manifest.json") in corrupt["reasons"][0]


def test_status_says_what_mends_it(copied):
    path = copied("scan-2")
    flip(path.with_name("scan-2.shards") / "1-of-2/scores/c/0/3", path)
    shown = call("status", path.parent, "--verify").stdout
    assert "scan-2.shards/1-of-2: scores/c/0/3: missing, or not what was written" in shown
    assert "mend it with: inflcli scan --shard 1/2 --overwrite" in shown


@pytest.mark.parametrize("damage", [flip, truncate, delete, lose_manifest])
@pytest.mark.parametrize("stage", OUTS)
def test_merge_stops_at_a_damaged_shard(copied, stage, damage):
    path = copied(f"{OUTS[stage]}-2")
    shutil.rmtree(path)
    shards = path.with_name(f"{path.name}.shards")
    damage(shards / "1-of-2" / VICTIMS[stage], shards)
    words = [f"{shards.name}/1-of-2", "--shard 1/2", "--overwrite"]
    if damage is not lose_manifest:
        words.append(Path(VICTIMS[stage]).name)
    refuse(call("merge", path), 4, *words)
    assert not path.exists()


@pytest.mark.parametrize(
    "victim",
    ["covariance/1-of-2/sums.0.safetensors", "corrected/0-of-2/sums.0.safetensors", "bases/{}"],
)
def test_merge_stops_at_damaged_sums(copied, victim):
    path = copied("factors-2")
    shards, before = path.with_name("factors-2.shards"), files_of(path)
    shutil.rmtree(path)
    if victim.startswith("covariance"):
        shutil.rmtree(shards / "bases")
    found = next(name for name in before if name.startswith("inputs/"))
    damaged = shards / victim.format(found)
    flip(damaged, shards)
    refuse(call("merge", path), 4, damaged.name, "--overwrite")
    assert not path.exists()
    if victim.startswith("bases"):
        merge(path, AGAIN)
        assert files_of(path) == before


@pytest.mark.parametrize("phase", ["covariance", "corrected"])
def test_the_same_command_mends_sums_of_either_round(whole, copied, phase):
    """Also those of the first round, when the second is done."""
    path = copied("factors-2")
    shards, factors = path.with_name("factors-2.shards"), files_of(path)
    before = {name: one for name, one in contents(shards).items() if "manifest" not in name}
    victim = f"{phase}/1-of-2/sums.0.safetensors"
    at = places(shards, [name for name in before if name != victim])
    shutil.rmtree(path)
    truncate(shards / victim, shards)
    refuse(call("merge", path), 4, f"{phase}/1-of-2")
    corpus, model = whole.run / "corpus", str(whole.model)
    for number in range(2):
        config = replace(whole.fit_config(blocks=2), shard=Shard(number, 2))
        result = fit_shard(model, corpus, path, config, AGAIN)
        assert result["fresh"] == (number == 0)
    after = {name: one for name, one in contents(shards).items() if "manifest" not in name}
    assert after == before
    assert places(shards, list(at)) == at
    merge(path, AGAIN)
    assert files_of(path) == factors


@pytest.mark.parametrize("stage", OUTS)
def test_the_same_command_mends_only_it(whole, monkeypatch, stage):
    """One chunk, or one query, of one shard."""
    out = f"{OUTS[stage]}-2"
    shards = whole.run / f"{out}.shards"
    before = {name: one for name, one in contents(shards).items() if "manifest" not in name}
    flip(shards / "1-of-2" / VICTIMS[stage], shards)
    untouched = [name for name in before if name != f"1-of-2/{VICTIMS[stage]}" and "/c/" in name]
    if stage == "attribute":  # what each rank is goes with every run
        untouched = [name for name in untouched if "token_scores" in name]
    at = places(shards, untouched)
    commits: list[int] = []
    commit = ArtifactWriter.commit

    def counted(self, *arguments):
        commits.append(1)
        commit(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "commit", counted)
        for number in range(2):
            shard = Shard(number, 2)
            getattr(mending(whole), stage)(str(shard.folder(Path(out))), shard=shard)
    assert len(commits) == 1
    now = places(shards, untouched)
    changed = {name for name in untouched if now[name] != at[name]}
    # A chunk has scores of two kinds, and both are written again.
    assert changed <= {"1-of-2/layer_scores/c/0/3/0"}
    after = {name: one for name, one in contents(shards).items() if "manifest" not in name}
    assert after == before
    merge(whole.run / out, AGAIN)
    same_but_for_timings(whole.run / out, whole.run / OUTS[stage])


@pytest.mark.parametrize("damage", [flip, truncate, delete])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stage", OUTS)
def test_of_what_was_merged_only_the_damage_is_copied(
    whole, copied, monkeypatch, stage, count, damage
):
    path = copied(f"{OUTS[stage]}-2")
    data = [name for name in files_of(path) if name.startswith(VICTIMS[stage].split("/")[0] + "/c")]
    for name in data[:count]:
        damage(path / name, path)
    copies: list[str] = []
    copy = shutil.copyfile

    def counted(source, target):
        copies.append(Path(target).relative_to(path.with_name(f"{path.name}.partial")).as_posix())
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", counted)
    merge(path, AGAIN)
    assert sorted(copies) == sorted(data[:count])
    same_but_for_timings(path, whole.run / OUTS[stage])
    assert merge(path, AGAIN)["fresh"]
