"""Scan results: a zarr group with `scores` [query, sequence] and `layer_scores` [query, sequence,
group], both float32, NaN where a sequence was not scanned; the top-k of both signs; and, where
asked for, `token_scores` [query, sequence, token], summed over modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from inflcli.artifacts import groups
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.groups import ArraySpec

_TOGETHER = 1 << 30
UNITS = "nats times number of training sequences (unscaled influence on the query's log p)"


def create(
    folder: Path,
    query_ids: list[str],
    sequences: int,
    group_names: list[str],
    top_k: int,
    width: int | None,
    chunk: int,
) -> zarr.Group:
    """Open the group for writing; creates the arrays, all NaN, when they are not there yet.

    `width` is the longest sequence, where there are to be token scores; `chunk` the sequences of
    a zarr chunk, the unit of a scan's progress.
    """
    queries, depth = len(query_ids), len(group_names)
    signed = ArraySpec((queries, 2, top_k), (queries, 2, top_k), "int64", ("query", "sign", "rank"))
    arrays = {
        "scores": ArraySpec(
            (queries, sequences), (queries, chunk), "float32", ("query", "sequence"), np.nan
        ),
        "layer_scores": ArraySpec(
            (queries, sequences, depth),
            (queries, chunk, depth),
            "float32",
            ("query", "sequence", "group"),
            np.nan,
        ),
        "top_ids": signed,
        "top_scores": ArraySpec(signed.shape, signed.chunks, "float32", signed.axes, np.nan),
    }
    if width is not None:
        arrays["token_scores"] = ArraySpec(
            (queries, sequences, width),
            (queries, chunk, width),
            "float32",
            ("query", "sequence", "token"),
            np.nan,
        )
    attributes = {
        "query_ids": query_ids,
        "group_names": group_names,
        "units": UNITS,
        "signs": ["positive", "negative"],
        "note": "columns of sequences that were not scanned are NaN; top_ids is -1 past the end",
    }
    return groups.create_group(folder, arrays, attributes)


def write(
    group: zarr.Group,
    span: slice,
    scores: NDArray[np.floating[Any]],
    layer_scores: NDArray[np.float32],
) -> None:
    """Write the columns `span`: scores [Q, n] and layer_scores [Q, n, G]."""
    groups.array(group, "scores")[:, span] = scores.astype(np.float32)
    groups.array(group, "layer_scores")[:, span] = layer_scores


def write_tokens(group: zarr.Group, span: slice, token_scores: NDArray[np.float32]) -> None:
    """Write the columns `span` of the token scores, [Q, n, T]."""
    groups.array(group, "token_scores")[:, span] = token_scores


def top_shape(group: zarr.Group) -> tuple[int, ...]:
    """Q, 2 and K."""
    return groups.array(group, "top_ids").shape


def write_top(group: zarr.Group, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    """Write the top-k of both signs, [Q, 2, K] each."""
    groups.array(group, "top_ids")[...] = ids
    groups.array(group, "top_scores")[...] = scores


def chunk_files(folder: Path, number: int | str) -> list[Path]:
    """The files that `write` makes for chunk `number` of the columns; `*` for all of them."""
    names = ["scores/c/0/{}", "layer_scores/c/0/{}/0", "token_scores/c/0/{}/0"]
    return [path for name in names for path in folder.glob(name.format(number))]


def chunks_in(files: Collection[str]) -> set[int]:
    """The chunks that files, by their relative paths, belong to."""
    pattern = r"(?:scores|layer_scores|token_scores)/c/0/(\d+)(?:/0)?"
    found = (re.fullmatch(pattern, name) for name in files)
    return {int(match[1]) for match in found if match}


@dataclass(frozen=True)
class ScanReader:
    """A complete scan."""

    artifact: Artifact
    group: zarr.Group

    @classmethod
    def open(cls, path: Path, *, shard: bool = False) -> ScanReader:
        artifact = Artifact.open(path, "scan", shard=shard)
        return cls(artifact, groups.open_group(artifact))

    def create_alike(self, folder: Path) -> zarr.Group:
        """A group in `folder` with the same empty arrays, for writing."""
        return groups.create_alike(folder, self.artifact)

    @property
    def query_ids(self) -> list[str]:
        return [str(item) for item in self.attribute("query_ids")]

    @property
    def group_names(self) -> list[str]:
        return [str(item) for item in self.attribute("group_names")]

    @property
    def group_of(self) -> dict[str, int]:
        """The depth group of each scored module."""
        details = self.artifact.manifest.details
        return dict(zip(details["modules"], details["group_of"], strict=True))

    def attribute(self, name: str) -> Any:
        return self.group.attrs[name]

    def scores(self, query: int) -> NDArray[np.float32]:
        """All scores of one query, [N]; NaN where not scanned."""
        return groups.read(self.group, "scores", (query, slice(None)))

    def each_scores(self, queries: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """`scores` of each of these queries, in their order; some read together, up to a GiB."""
        # A chunk holds all queries: reading them one by one would read everything as many times.
        total = groups.array(self.group, "scores").shape[1]
        step = max(1, _TOGETHER // (4 * total))
        for first in range(0, len(queries), step):
            some = list(queries[first : first + step])
            rows = slice(min(some), max(some) + 1)
            found = groups.read(self.group, "scores", rows)
            yield from (found[query - rows.start] for query in some)

    def layer_scores(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores by depth group [Q, K, G] of each query's own sequences `ids` [Q, K]; NaN for -1.

        Cost: every chunk that holds one of them is read once.
        """
        stored = groups.array(self.group, "layer_scores")
        step, found = stored.chunks[1], np.full((*ids.shape, stored.shape[2]), np.nan, np.float32)
        queries, places = np.nonzero(ids >= 0)
        numbers = ids[queries, places]
        order = np.argsort(numbers, kind="stable")
        queries, places, numbers = queries[order], places[order], numbers[order]
        chunks, starts = np.unique(numbers // step, return_index=True)
        stops = [*starts[1:].tolist(), len(numbers)]
        for chunk, start, stop in zip(chunks.tolist(), starts.tolist(), stops, strict=False):
            span = slice(chunk * step, (chunk + 1) * step)
            values = groups.read(self.group, "layer_scores", (slice(None), span))
            query, number = queries[start:stop], numbers[start:stop]
            found[query, places[start:stop]] = values[query, number - span.start]
        return found

    def token_scores(self, query: int) -> NDArray[np.float32]:
        """Scores of one query by token, [N, T], 0 past a sequence's end, NaN where not scanned.

        Raises CorruptArtifact when the scan was made without them.
        """
        return groups.read(self.group, "token_scores", query)

    def top(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`top_ids` and `top_scores` [Q, 2, K]: most positive first, most negative first."""
        return groups.read(self.group, "top_ids"), groups.read(self.group, "top_scores")

    def chunks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Scores [Q, at most a chunk] with the number of their first sequence, in order."""
        return read_chunks(self.group)


def read_chunks(group: zarr.Group) -> Iterator[tuple[int, NDArray[np.float32]]]:
    scores = groups.array(group, "scores")
    total, chunk = scores.shape[1], scores.chunks[1]
    for first in range(0, total, chunk):
        yield first, groups.read(group, "scores", (slice(None), slice(first, first + chunk)))
