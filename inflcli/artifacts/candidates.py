"""Candidates: the sequences that a cheap filter found closest to each query.

The folder is a zarr group:

    ids      [Q, K]   int64     sequence numbers of the corpus, best first; -1 past the last
    scores   [Q, K]   float32   the filter's score, NaN past the last

K is `--top`, or the number of sequences where that is less. Rows follow the query file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts import rows
from inflcli.artifacts.folder import Artifact
from inflcli.errors import CorruptArtifact

STAGE = "tfidf-filter"
_CHUNK_BYTES = 1 << 20


def write(
    folder: Path,
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    query_ids: list[str],
    attributes: dict[str, Any],
) -> None:
    """Write ids and scores [Q, K] into an artifact in the making."""
    group = rows.create_group(folder)
    described = {"kind": "inflcli candidates", "query_ids": query_ids, **attributes}
    rows.describe(folder, group, described)
    count = ids.shape[1]
    per_chunk = _queries_a_chunk(count)
    for name, values in (("ids", ids), ("scores", scores)):
        array = rows.RowWriter(
            folder, group, name, row_shape=(count,), dtype=values.dtype, chunk_rows=per_chunk,
            axes=("query", "rank"),
        )  # fmt: skip
        array.append(values)
        array.finish()


def _queries_a_chunk(top: int) -> int:
    return max(1, _CHUNK_BYTES // (8 * max(top, 1)))


def damaged_queries(files: Iterable[str], queries: int, top: int) -> list[int] | None:
    """The queries in damaged files of candidates [queries, top]; None if it may be any."""
    found: set[int] = set()
    for file in files:
        name, *rest = file.split("/")
        if name not in ("ids", "scores") or rest[:1] != ["c"]:
            return None
        size = _queries_a_chunk(top)
        first = int(rest[1]) * size
        found.update(range(first, min(first + size, queries)))
    return sorted(found)


def read_sound(
    folder: Path, top: int, damaged: Collection[int], queries: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and scores [queries, top] of which the rows `damaged` mean nothing.

    Raises CorruptArtifact where others cannot be read.
    """
    group, size, missing = rows.open_group(folder), _queries_a_chunk(top), set(damaged)
    readers = [rows.RowReader(folder, group, name) for name in ("ids", "scores")]
    ids, scores = np.zeros((queries, top), np.int64), np.zeros((queries, top), np.float32)
    for first in range(0, queries, size):
        part = slice(first, min(first + size, queries))
        if first not in missing:
            ids[part], scores[part] = (one.read(part.start, part.stop) for one in readers)
    return ids, scores


@dataclass(frozen=True)
class CandidateReader:
    """Complete candidates, in memory."""

    artifact: Artifact
    query_ids: list[str]
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    attributes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> CandidateReader:
        """Open what tfidf-filter wrote at `path`.

        Raises MissingArtifact, CorruptArtifact, or BadInput when it is another kind of artifact.
        """
        artifact = Artifact.open(path, STAGE)
        group = rows.open_group(path)
        attributes = rows.attributes(group)
        ids = rows.RowReader(path, group, "ids").read()
        scores = rows.RowReader(path, group, "scores").read()
        query_ids = [str(one) for one in attributes.get("query_ids", [])]
        if ids.shape != scores.shape or len(ids) != len(query_ids):
            raise CorruptArtifact(
                f"{path} has arrays of different shapes", "make it again with --overwrite"
            )
        return cls(artifact, query_ids, ids, scores, attributes)

    def union(self) -> NDArray[np.int64]:
        """The candidates of all queries, each once, ascending."""
        return np.unique(self.ids[self.ids >= 0])
