"""`merge`: the shards of a stage, joined to the artifact that one process would have written."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from inflcli.artifacts import attribution, files
from inflcli.artifacts import scan as scans
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import Runtime
from inflcli.errors import StaleArtifact
from inflcli.stages import common
from inflcli.stages.fit_shards import merge_fit
from inflcli.stages.scan import write_top
from inflcli.stages.shards import Shards, find_shards


@common.exclusively
def merge(out: Path, runtime: Runtime) -> dict[str, Any]:
    """Join the shards in `OUT.shards` to `out`; they are left where they are.

    Of a damaged `out` only what is damaged is copied again.

    Cost: the data is read twice and written once. Raises BadInput, MissingArtifact, StaleArtifact,
    CorruptArtifact.
    """
    folder = out.with_name(f"{out.name}.shards")
    if (folder / "covariance").is_dir():
        return merge_fit(folder, out, runtime)
    shards = find_shards(folder)
    if runtime.overwrite or not out.exists():
        shards.verify()
    writer = ArtifactWriter.begin(
        out,
        shards.whole,
        overwrite=runtime.overwrite,
        command=runtime.command,
        salvage=_salvaged,
    )
    if writer is None:
        return common.up_to_date(out, shards.stage)
    artifact = {"scan": _scans, "attribute": _attributions}[shards.stage](writer, shards)
    summary = f"{len(shards.artifacts)} shards merged"
    return common.result(artifact, fresh=False, summary=summary)


def _salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any]:
    """The progress of a damaged whole: the files that are sound."""
    return {"sound": sorted(set(manifest.files) - set(damaged))}


def _scans(writer: ArtifactWriter, shards: Shards) -> Artifact:
    """Chunks are files: those of all shards lie side by side."""
    # A shard that had nothing to scan chose no routes.
    busy = [one for one in shards.artifacts if one.manifest.counts["sequences"]]
    details = busy[0].manifest.details
    for other in busy[1:]:
        if other.manifest.details != details:
            raise StaleArtifact(
                f"{other.path} took other routes than {busy[0].path}",
                "run the shards again with the same --route or --max-memory",
            )
    readers = [scans.ScanReader.open(one.path, shard=True) for one in shards.artifacts]
    group = readers[0].create_alike(writer.folder)
    for reader in readers:
        _copy(reader.artifact.path, writer, scans.chunk_files(reader.artifact.path, "*"))
    with files.write_errors(writer.folder):
        write_top(group)
    counts = {**shards.artifacts[0].manifest.counts, "sequences": shards.total("sequences")}
    return writer.finish(counts=counts, details=details, timings=_seconds(shards))


def _attributions(writer: ArtifactWriter, shards: Shards) -> Artifact:
    readers = [attribution.AttributionReader.open(o.path, shard=True) for o in shards.artifacts]
    group = readers[0].create_alike(writer.folder)
    ids, worst, error = readers[0].sequences(), 0.0, 0.0
    for reader in readers:
        found = reader.artifact.manifest.details
        worst = max(worst, found["worst_difference_from_scan"])
        error = max(error, found.get("counterfactual_error", 0.0))
        _copy(reader.artifact.path, writer, attribution.query_files(reader.artifact.path, "*"))
    with files.write_errors(writer.folder):
        attribution.write_ranking(group, ids, readers[0].scores())
    counts = {
        "pairs": int((ids >= 0).sum()),
        "sequences": len(np.unique(ids[ids >= 0])),
    }
    measured = {"worst_difference_from_scan": worst, "counterfactual_error": error}
    details = {**shards.details, **measured}
    return writer.finish(counts=counts, details=details)


def _copy(shard: Path, writer: ArtifactWriter, paths: list[Path]) -> None:
    """Copy a shard's files to where they lie in the whole, but for those that are there."""
    sound = set(writer.progress.get("sound", ()))
    with files.write_errors(writer.folder):
        for path in paths:
            name = path.relative_to(shard)
            if name.as_posix() in sound:
                continue
            target = writer.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _seconds(shards: Shards) -> dict[str, float]:
    """Of all shards together, by what they did."""
    names = [n for n in shards.artifacts[0].manifest.timings if n != "seconds"]
    return {n: sum(one.manifest.timings[n] for one in shards.artifacts) for n in names}
