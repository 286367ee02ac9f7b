"""The corpus artifact: token sequences, and which documents and characters each came from.

The folder is a zarr group, so that `zarr.open_group(path)["tokens"]` works:

    tokens            [N, T]    uint16 or uint32   0 after `lengths`
    lengths           [N]       int32              tokens of the sequence that are not padding
    span_offsets      [N + 1]   int64              spans of sequence i: offsets[i]:offsets[i + 1]
    spans             [S, 5]    int64              document, char start, char end, token start, end
    document_offsets  [D + 1]   int64              bytes of document d's record
    document_records  [bytes]   uint8              JSON: [id, file, line, metadata]
    waypoints         [bytes]   uint8              JSON lines: how far prepare was; see `Waypoint`

Characters count from the start of the document's text, token positions from the start of the
sequence; ends are exclusive. Spans and documents are in corpus order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inflcli.artifacts import rows
from inflcli.artifacts.folder import Artifact
from inflcli.errors import CorruptArtifact

STAGE = "prepare"
_ARRAYS = (
    "tokens", "lengths", "span_offsets", "spans", "document_offsets", "document_records",
    "waypoints",
)  # fmt: skip
SPAN_FIELDS = ("document", "char_start", "char_end", "token_start", "token_end")

Span = tuple[int, int, int, int, int]
Chunk = tuple[str, int]
"""A chunk of an array: its name, and which it is."""


@dataclass(frozen=True)
class Source:
    """A stretch of a document that a sequence holds."""

    document: int
    """Index in the corpus's document table."""
    document_id: str
    """The document's own id, or `file:line`."""
    file: str
    line: int
    """Line of a text or JSONL file, row of a table; from 1."""
    char_start: int
    char_end: int
    token_start: int
    token_end: int
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusLayout:
    """What decides the arrays' shapes, kept in the group's attributes."""

    tokenizer: str
    """As the user named it: a folder or a hub name."""
    vocab_size: int
    seq_len: int
    packing: str
    """`packed` or `per-line`."""
    bos: bool

    @property
    def token_dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def attributes(self) -> dict[str, Any]:
        return {
            "kind": "inflcli corpus",
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "seq_len": self.seq_len,
            "packing": self.packing,
            "bos": self.bos,
            "span_fields": list(SPAN_FIELDS),
            "units": {
                "tokens": "token id",
                "lengths": "tokens",
                "spans": "document index; characters of the document; tokens of the sequence",
                "document_offsets": "bytes of document_records",
            },
        }


@dataclass(frozen=True)
class Waypoint:
    """A point from which prepare can go on, so that a damaged chunk need not cost all of it."""

    state: dict[str, Any]
    """What prepare said of itself there."""
    rows: dict[str, int]
    """Rows of every array."""


class CorpusWriter:
    """Appends sequences and documents; `state` is all that is not on disk yet."""

    def __init__(
        self,
        folder: Path,
        layout: CorpusLayout,
        *,
        state: dict[str, NDArray[Any]] | None = None,
        counts: dict[str, int] | None = None,
        chunk_rows: int = 1024,
    ) -> None:
        """Begin in `folder`, or go on from an earlier `state` and its `counts`."""
        self.layout = layout
        self._group = rows.create_group(folder)
        rows.describe(folder, self._group, layout.attributes())
        given, before, group = state or {}, counts or {}, self._group

        def array(name: str, dtype: Any, chunk: int, *shape: int) -> rows.RowWriter:
            return rows.RowWriter(
                folder, group, name, row_shape=shape, dtype=dtype, chunk_rows=chunk,
                rows=before.get(name, 0), tail=given.get(name),
            )  # fmt: skip

        self.tokens = array("tokens", layout.token_dtype, chunk_rows, layout.seq_len)
        self.lengths = array("lengths", np.int32, 16 * chunk_rows)
        self.span_offsets = array("span_offsets", np.int64, 16 * chunk_rows)
        self.spans = array("spans", np.int64, 16 * chunk_rows, len(SPAN_FIELDS))
        self.document_offsets = array("document_offsets", np.int64, 16 * chunk_rows)
        self.document_records = array("document_records", np.uint8, 512 * chunk_rows)
        self.waypoints = array("waypoints", np.uint8, 512 * chunk_rows)
        self.arrays = (
            self.tokens, self.lengths, self.span_offsets, self.spans,
            self.document_offsets, self.document_records, self.waypoints,
        )  # fmt: skip
        if not self.span_offsets.rows:
            self.span_offsets.append([0])
            self.document_offsets.append([0])

    @property
    def n_sequences(self) -> int:
        return self.lengths.rows

    @property
    def n_documents(self) -> int:
        return self.document_offsets.rows - 1

    def add_document(
        self, document_id: str | None, file: str, line: int, metadata: dict[str, Any]
    ) -> int:
        """Add a document to the table and return its index."""
        # str for what a table's columns may hold besides JSON's types, such as dates.
        record = json.dumps([document_id, file, line, metadata], separators=(",", ":"), default=str)
        self.document_records.append(np.frombuffer(record.encode(), np.uint8))
        self.document_offsets.append([self.document_records.rows])
        return self.n_documents - 1

    def add_sequences(self, tokens: list[list[int]], spans: list[list[Span]]) -> None:
        """Add sequences of 1 to seq_len tokens, each with its spans in order."""
        if not tokens:
            return
        lengths = np.array([len(one) for one in tokens], np.int32)
        block = np.zeros((len(tokens), self.layout.seq_len), self.layout.token_dtype)
        for row, one in enumerate(tokens):
            block[row, : len(one)] = one
        ends = self.spans.rows + np.cumsum([len(one) for one in spans])
        self.tokens.append(block)
        self.lengths.append(lengths)
        self.spans.append([span for one in spans for span in one])
        self.span_offsets.append(ends)

    def add_waypoint(self, state: dict[str, Any]) -> None:
        """Record `state`, with the rows that there are."""
        line = json.dumps({"state": state, "rows": self.counts()}, separators=(",", ":")) + "\n"
        self.waypoints.append(np.frombuffer(line.encode(), np.uint8))

    def state(self) -> dict[str, NDArray[Any]]:
        """The rows of each array that are not on disk."""
        return {array.name: array.tail() for array in self.arrays}

    def counts(self) -> dict[str, int]:
        """Rows of each array, those of `state` included."""
        return {array.name: array.rows for array in self.arrays}

    def make_durable(self) -> None:
        """fsync what was written since the last call; before `state` is recorded."""
        for array in self.arrays:
            array.make_durable()

    def finish(self) -> None:
        for array in self.arrays:
            array.finish()


def damaged_chunks(files: Iterable[str]) -> list[Chunk] | None:
    """The chunks among damaged files of a corpus; None if one is no part of its arrays."""
    found = []
    for file in files:
        name, _, rest = file.partition("/")
        if name in _ARRAYS and rest.startswith("c/"):
            found.append((name, int(rest.split("/")[1])))
        elif file != "zarr.json" and not (name in _ARRAYS and rest == "zarr.json"):
            return None
    return sorted(found)


def read_waypoints(folder: Path, damaged: Collection[Chunk]) -> list[Waypoint]:
    """Those of a corpus of which not all chunks are there, in order."""
    array = rows.RowReader(folder, rows.open_group(folder), "waypoints")
    size = array.array.chunks[0]
    text = b"".join(
        b"\n" * min(size, len(array) - first)
        if ("waypoints", first // size) in damaged
        else array.read(first, first + size).tobytes()
        for first in range(0, len(array), size)
    )
    found, end = [], 0
    for line in text.split(b"\n"):
        end += len(line) + 1
        # Half of a line, at the edge of what is damaged, is no object.
        with suppress(ValueError):
            one = json.loads(line)
            found.append(Waypoint(one["state"], {**one["rows"], "waypoints": end}))
    return found


def read_rows(folder: Path, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows of an array of a corpus that may be incomplete elsewhere. Raises CorruptArtifact."""
    return rows.RowReader(folder, rows.open_group(folder), name).read(start, stop)


class CorpusReader:
    """A complete corpus, opened for reading. Only `lengths` is held in memory."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        path = artifact.path
        group = rows.open_group(path)
        self.attributes = rows.attributes(group)
        self._tokens = rows.RowReader(path, group, "tokens")
        lengths = rows.RowReader(path, group, "lengths")
        self._span_offsets = rows.RowReader(path, group, "span_offsets")
        self._spans = rows.RowReader(path, group, "spans")
        self._document_offsets = rows.RowReader(path, group, "document_offsets")
        self._document_records = rows.RowReader(path, group, "document_records")
        self.n_sequences, self.seq_len = self._tokens.shape
        if len(lengths) != self.n_sequences or len(self._span_offsets) != self.n_sequences + 1:
            raise CorruptArtifact(
                f"{path} has arrays of different lengths", "make it again with --overwrite"
            )
        self.lengths: NDArray[np.int32] = lengths.read()

    @classmethod
    def open(cls, path: Path) -> CorpusReader:
        """Open the corpus that prepare wrote at `path`.

        Raises MissingArtifact, CorruptArtifact, or BadInput when it is another kind of artifact.
        """
        return cls(Artifact.open(path, STAGE))

    @property
    def tokenizer(self) -> str:
        """The tokenizer as the user named it: a folder or a hub name."""
        return self.artifact.manifest.inputs["tokenizer"].path

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.artifact.manifest.inputs["tokenizer"].fingerprint

    @property
    def vocab_size(self) -> int:
        return int(self.attributes["vocab_size"])

    @property
    def n_documents(self) -> int:
        return len(self._document_offsets) - 1

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sequences start:stop as [n, T] token ids. Raises CorruptArtifact."""
        return self._tokens.read(start, stop).astype(np.int64)

    def take(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Sequences `ids` [n] in their order as [n, T]. Raises CorruptArtifact, IndexError."""
        return self._tokens.take(ids).astype(np.int64)

    def sources(self, index: int) -> list[Source]:
        """Where sequence `index` came from, in token order. Cost: a few chunks decoded."""
        if not 0 <= index < self.n_sequences:
            raise IndexError(f"{self.artifact.path} has sequences 0 to {self.n_sequences - 1}")
        start, stop = self._span_offsets.read(index, index + 2).tolist()
        spans = self._spans.read(start, stop).tolist()
        return [self._source(*span) for span in spans]

    def _source(
        self, document: int, char_start: int, char_end: int, token_start: int, token_end: int
    ) -> Source:
        start, stop = self._document_offsets.read(document, document + 2).tolist()
        try:
            record = json.loads(self._document_records.read(start, stop).tobytes())
            document_id, file, line, metadata = record
        except ValueError as error:
            raise CorruptArtifact(
                f"{self.artifact.path}: the record of document {document} is damaged",
                "make the corpus again with --overwrite",
            ) from error
        name = document_id if document_id is not None else f"{file}:{line}"
        return Source(
            document, name, file, line, char_start, char_end, token_start, token_end, metadata
        )
