"""Whatever of an artifact is damaged is found and named with exit code 4, and made again with
`--overwrite`: only what was damaged, with the same bytes. For the other stages see
test_mended_corpus, test_mended_queries and test_damaged_factors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import killing
import pytest
from commands import call, contents
from killing import OUTS as STAGES
from pipeline import Pipeline

from inflcli.artifacts import files
from inflcli.artifacts.folder import damaged_files
from inflcli.artifacts.manifest import read_manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.errors import CorruptArtifact


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32")
    for stage in STAGES:
        run_stage(pipeline, stage, tiny_text, tiny_queries)
    yield pipeline


def run_stage(pipeline: Pipeline, stage: str, text: Path, queries: Path) -> None:
    killing.run_stage(pipeline, stage, STAGES[stage], text, queries)


def flip(path: Path, other: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    """Two files of the artifact in each other's place."""
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGES: list[Callable[[Path, Path], None]] = [flip, truncate, delete, swap]


def data_files(folder: Path) -> list[Path]:
    """All but the manifest, those with content of their own first."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if path.name != "manifest.json" and path.stat().st_size > 1]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("stage", STAGES)
def test_damage_is_named(whole, tmp_path, stage, damage):
    """In every file in turn, of an artifact alone: its inputs play no part."""
    name = STAGES[stage]
    for number, file in enumerate(data_files(whole.run / name)):
        copy = tmp_path / f"{number}"
        shutil.copytree(whole.run / name, copy / name)
        files = data_files(copy / name)
        others = [one for one in files if one.read_bytes() != files[number].read_bytes()]
        if damage is swap and not others:
            continue
        damage(files[number], others[0] if others else files[number])
        result = call("status", copy, "--verify", "--json")
        assert result.exit_code == 4, file
        (described,) = json.loads(result.stdout)["artifacts"]
        assert described["state"] == "corrupt"
        assert file.name in " ".join(described["reasons"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_manifest_that_is_gone_is_named(whole, tiny_text, tiny_queries, tmp_path, stage):
    """By status and by the stage, which touches nothing even with --overwrite: without a manifest
    these may be anybody's files."""
    name = STAGES[stage]
    shutil.copytree(whole.run, tmp_path / "run")
    run = replace(whole, run=tmp_path / "run")
    (run.run / name / "manifest.json").unlink()
    result = call("status", run.run, "--verify", "--json")
    assert result.exit_code == 4
    (lost,) = [one for one in json.loads(result.stdout)["artifacts"] if one["name"] == name]
    assert lost["state"] == "corrupt" and "manifest.json" in " ".join(lost["reasons"])
    left = contents(run.run / name)
    for one in (run, mending(run)):
        with pytest.raises(CorruptArtifact, match=r"manifest\.json is missing"):
            run_stage(one, stage, tiny_text, tiny_queries)
    assert contents(run.run / name) == left
    shutil.rmtree(run.run / name)
    run_stage(run, stage, tiny_text, tiny_queries)
    again = contents(run.run / name)
    del again["manifest.json"]
    if stage == "report":  # it names the folder
        again, left = set(again), set(left)
    assert again == left


@pytest.mark.parametrize("stage", STAGES)
def test_an_edited_manifest_is_named(whole, tmp_path, stage):
    shutil.copytree(whole.run / STAGES[stage], tmp_path / "it")
    manifest = tmp_path / "it/manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["seed"] = 77
    manifest.write_text(json.dumps(content))
    result = call("status", tmp_path, "--verify")
    assert result.exit_code == 4
    assert "edited" in result.stdout


@pytest.mark.parametrize("damage", DAMAGES[:3], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("scan", "scores/c/0/2"),
        ("scan", "layer_scores/c/0/3/0"),
        ("scan", "top_ids/c/0/0/0"),
        ("scan", "scores/zarr.json"),
        ("scan", "zarr.json"),
        ("attribute", "token_scores/c/1/0/0/0"),
        ("attribute", "sequences/c/0/0"),
    ],
)
def test_only_what_is_damaged_is_made_again(
    whole, tiny_text, tiny_queries, monkeypatch, stage, victim, damage
):
    name = STAGES[stage]
    before = contents(whole.run / name)
    damage(whole.run / name / victim, whole.run)
    commits: list[dict] = []
    commit = ArtifactWriter.commit

    def counted(self, progress, written=None):
        commits.append(progress)
        commit(self, progress, written)

    monkeypatch.setattr(ArtifactWriter, "commit", counted)
    run_stage(mending(whole), stage, tiny_text, tiny_queries)
    after = contents(whole.run / name)
    del before["manifest.json"], after["manifest.json"]
    assert after == before
    # One chunk, or one query, or none.
    assert len(commits) == ("/c/" in victim and not victim.startswith(("top", "sequences")))


def mending(pipeline: Pipeline) -> Pipeline:
    return replace(pipeline, runtime=replace(pipeline.runtime, overwrite=True))


def test_a_report_is_made_again_whole(whole, tiny_text, tiny_queries):
    stage, name = "report", STAGES["report"]
    flip(data_files(whole.run / name)[0], whole.run)
    assert damaged_files(whole.run / name, read_manifest(whole.run / name))
    run_stage(mending(whole), stage, tiny_text, tiny_queries)
    assert not damaged_files(whole.run / name, read_manifest(whole.run / name))


@pytest.mark.parametrize("owner", [files.write_json, Path.rename, Path.unlink])
def test_stopped_while_mending(whole, tiny_text, tiny_queries, monkeypatch, owner):
    """At every call of what mending does: the next attempt ends with the same bytes."""
    before = contents(whole.run / "scan")
    flip(whole.run / "scan/scores/c/0/2", whole.run)
    place = files if owner is files.write_json else Path
    for allowed in range(4):
        left = [allowed]

        def stopped(*arguments, left=left, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return owner(*arguments, **options)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(place, owner.__name__, stopped)
            run_stage(mending(whole), "scan", tiny_text, tiny_queries)
    run_stage(mending(whole), "scan", tiny_text, tiny_queries)
    after = contents(whole.run / "scan")
    del before["manifest.json"], after["manifest.json"]
    assert after == before
