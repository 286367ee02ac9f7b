"""Making damaged chunks of a corpus again, from the last waypoint before each.

A chunk costs the text from there to its own end: a thousand sequences or two for one of tokens, up
to sixteen thousand for one of the arrays whose chunks hold as many rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from inflcli.artifacts.corpus import (
    Chunk,
    Waypoint,
    damaged_chunks,
    read_rows,
    read_waypoints,
)
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.corpus.encode import Encoder
from inflcli.stages.tokenising import Task, Tokenising, open_arrays

MENDING = "damaged"
"""In the progress of a corpus that is mended."""


def salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any] | None:
    """The progress of a damaged corpus: which chunks are to be made again, and what it was."""
    chunks = damaged_chunks(damaged)
    if chunks is None or "rows" not in manifest.details:
        return None
    return {MENDING: chunks, "counts": manifest.counts, "details": manifest.details}


def mend(writer: ArtifactWriter, task: Task, encoder: Encoder) -> Artifact:
    """Make the chunks again that the progress names. Stopped, it goes on with those left."""
    before = writer.progress
    rows: dict[str, int] = before["details"]["rows"]
    left: list[Chunk] = [(name, number) for name, number in before[MENDING]]
    while left:
        left = _stretch(writer, task, encoder, rows, left)
        writer.commit({**before, MENDING: left})
    open_arrays(writer.folder, task, rows)
    return writer.finish(counts=before["counts"], details=before["details"])


def _stretch(
    writer: ArtifactWriter, task: Task, encoder: Encoder, rows: dict[str, int], left: list[Chunk]
) -> list[Chunk]:
    """Make again what comes first in the text, and whatever else is on the way; what is left."""
    sizes = {array.name: array.chunk for array in open_arrays(writer.folder, task, rows).arrays}
    points = read_waypoints(writer.folder, left)
    begins = {chunk: _before(chunk, points, sizes, left) for chunk in left}
    wanted = min(left, key=lambda chunk: _place(begins[chunk]))
    begin = begins[wanted]
    tails = {}
    if begin is not None:
        for name, count in begin.rows.items():
            tails[name] = read_rows(writer.folder, name, count - count % sizes[name], count)
    state = {} if begin is None else begin.state
    run = Tokenising(writer.folder, task, state, tails, None if begin is None else begin.rows)
    arrays = {array.name: array for array in run.corpus.arrays}

    def is_made(chunk: Chunk) -> bool:
        name, number = chunk
        return arrays[name].stored >= min((number + 1) * sizes[name], rows[name])

    if run.consume(encoder, "prepare, mending", lambda: not is_made(wanted)):
        run.finish()
    run.corpus.make_durable()
    return [
        chunk for chunk in left if not (_place(begins[chunk]) >= _place(begin) and is_made(chunk))
    ]


def _place(point: Waypoint | None) -> int:
    return 0 if point is None else point.rows["waypoints"]


def _before(
    chunk: Chunk, points: list[Waypoint], sizes: dict[str, int], damaged: list[Chunk]
) -> Waypoint | None:
    """The last waypoint from which `chunk` is made; None for the beginning of the text.

    Rows of an array that fill no chunk there are read from the disk, so that one must be sound.
    """
    name, number = chunk
    for point in reversed(points):
        if point.rows[name] <= number * sizes[name] and all(
            count % sizes[each] == 0 or (each, count // sizes[each]) not in damaged
            for each, count in point.rows.items()
        ):
            return point
    return None
