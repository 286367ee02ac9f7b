"""`rerank`: a scan's scores of some layers alone, from what it kept by depth group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inflcli import console
from inflcli.artifacts import groups
from inflcli.artifacts import scan as store
from inflcli.artifacts.files import write_errors
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import Runtime
from inflcli.errors import BadInput, MissingArtifact
from inflcli.model.tracked import TrackedModule, select_layers
from inflcli.stages import common
from inflcli.stages.freshness import Unknown, place
from inflcli.stages.scan import STAGE, salvaged, write_top


@common.exclusively
def rerank(scan: Path, out: Path, layers: str, top_k: int, runtime: Runtime) -> dict[str, Any]:
    """Write the scan that `scan --layers` would, up to rounding, without a model.

    Cost: the scores by depth group are read, and those of the layers written. Raises BadInput
    where the layers are no union of the scan's depth groups.
    """
    source = ScanReader.open(scan)
    every = _modules(source)
    kept = select_layers(every, layers)
    chosen = _groups(source, every, kept, layers)
    manifest = source.artifact.manifest
    config = {**manifest.config, "layers": layers, "top_k": top_k}
    inputs = {**manifest.inputs, "scan": source.artifact.as_input()}
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config, inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
        salvage=salvaged,
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    names = [source.group_names[group] for group in chosen]
    stored = groups.array(source.group, "layer_scores")
    total, step = stored.shape[1], stored.chunks[1]
    group = store.create(
        writer.folder, source.query_ids, total, names, min(top_k, total), None, step
    )
    done: set[int] = set(writer.progress.get("chunks", []))
    with console.progress("rerank", total, done=min(len(done) * step, total)) as meter:
        for number in (one for one in range(-(-total // step)) if one not in done):
            span = slice(number * step, min((number + 1) * step, total))
            found = groups.read(source.group, "layer_scores", (slice(None), span))[..., chosen]
            with write_errors(writer.folder):
                store.write(group, span, found.sum(-1, dtype=np.float64), found)
            done.add(number)
            written = store.chunk_files(writer.folder, number)
            writer.commit({"chunks": sorted(done)}, written)
            meter.advance(span.stop - span.start)
    with write_errors(writer.folder):
        write_top(group)
    group_of = source.group_of
    details = {
        **manifest.details,
        "groups": names,
        "modules": [module.name for module in kept],
        "group_of": [chosen.index(group_of[module.name]) for module in kept],
        "routes": {module.name: manifest.details["routes"][module.name] for module in kept},
    }
    artifact = writer.finish(counts=manifest.counts, details=details)
    summary = f"{', '.join(names)}: {len(kept)} of {len(every)} modules"
    return common.result(artifact, fresh=False, summary=summary)


def _modules(scan: ScanReader) -> list[TrackedModule]:
    """The modules that were scored, as the queries describe them."""
    recorded = scan.artifact.manifest.inputs["queries"]
    try:
        queries = QueriesReader.open(place(recorded.path, scan.artifact.path))
    except Unknown as error:
        raise MissingArtifact(f"the queries of {scan.artifact.path}: {error}") from error
    again = "scan again: inflcli scan ... --overwrite"
    scan.artifact.require_input("queries", queries.artifact.as_input(), again)
    scored = set(scan.artifact.manifest.details["modules"])
    return [m for m in common.tracked_from(queries.modules) if m.name in scored]


def _groups(
    scan: ScanReader, every: Sequence[TrackedModule], kept: Sequence[TrackedModule], layers: str
) -> list[int]:
    """The depth groups that hold the kept modules and no other."""
    group_of, names = scan.group_of, {module.name for module in kept}
    chosen = sorted({group_of[name] for name in names})
    split = [m for m in every if group_of[m.name] in chosen and m.name not in names]
    if split:
        raise BadInput(
            f"--layers {layers} cuts through the depth groups of {scan.artifact.path}: "
            f"{', '.join(scan.group_names)}",
            f"scan these layers by themselves: inflcli scan ... --layers {layers}",
        )
    return chosen
