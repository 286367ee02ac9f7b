"""Zarr arrays of an artifact, row by row: appended in whole chunks, read with none missing.

A chunk reaches the disk once, complete, so that a killed run never leaves half of one that an
earlier commit counted. Rows that do not fill a chunk yet stay in memory (`RowWriter.tail`) and
travel in the artifact's saved state. Zarr itself gives fill values for a chunk that is absent;
`RowReader` refuses instead. Every chunk carries a CRC-32C.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from inflcli.artifacts.files import sync, sync_names, write_errors
from inflcli.errors import CorruptArtifact

_METADATA = "zarr.json"
_REMAKE = "make the artifact again with --overwrite"


def create_group(folder: Path) -> zarr.Group:
    """A zarr group at `folder`; chunks that an interrupted run left there are kept."""
    with write_errors(folder):
        (folder / _METADATA).unlink(missing_ok=True)
        for stray in folder.rglob("*.partial"):  # zarr's own temporary files, after a kill
            if stray.is_file():
                stray.unlink()
        return zarr.open_group(folder, mode="a", zarr_format=3)


def describe(folder: Path, group: zarr.Group, attributes: dict[str, Any]) -> None:
    """Write attributes of a group at `folder`."""
    with write_errors(folder):
        group.attrs.update(attributes)


def open_group(folder: Path) -> zarr.Group:
    """The zarr group of a complete artifact. Raises CorruptArtifact."""
    try:
        return zarr.open_group(folder, mode="r", zarr_format=3)
    except Exception as error:  # zarr raises its own, OSError, ValueError, KeyError...
        raise CorruptArtifact(f"{folder} is not a zarr group ({error})", _REMAKE) from error


def attributes(group: zarr.Group) -> dict[str, Any]:
    return dict(group.attrs)


class RowWriter:
    """One array [rows, *row_shape] that grows; see the module's text."""

    def __init__(
        self,
        folder: Path,
        group: zarr.Group,
        name: str,
        *,
        row_shape: tuple[int, ...] = (),
        dtype: Any,
        chunk_rows: int,
        rows: int = 0,
        tail: NDArray[Any] | None = None,
        axes: Sequence[str] | None = None,
    ) -> None:
        """Begin an array, or go on after `rows` rows of which `tail` are not on disk yet."""
        self.folder, self.name = folder / name, name
        self.chunk = chunk_rows
        self._shape = row_shape
        self._dtype = np.dtype(dtype)
        empty = np.zeros((0, *row_shape), self._dtype)
        self._parts = [empty if tail is None else tail.astype(self._dtype)]
        self._pending = len(self._parts[0])
        self._stored = rows - self._pending
        self._unsynced: list[Path] = []
        self._named: set[Path] = set()
        with write_errors(self.folder):
            (self.folder / _METADATA).unlink(missing_ok=True)
            self._array = group.create_array(
                name,
                shape=(self._stored, *row_shape),
                chunks=(chunk_rows, *row_shape),
                dtype=self._dtype,
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                # A chunk of zeros is written too: absent must always mean lost.
                config={"write_empty_chunks": True},
                dimension_names=axes,
            )

    @property
    def rows(self) -> int:
        return self._stored + self._pending

    @property
    def stored(self) -> int:
        """Rows that are on disk."""
        return self._stored

    def append(self, rows: ArrayLike) -> None:
        """Add rows [n, *row_shape]; whole chunks are written at once."""
        block = np.asarray(rows, dtype=self._dtype).reshape(-1, *self._shape)
        self._parts.append(block)
        self._pending += len(block)
        if self._pending >= self.chunk:
            data = self.tail()
            whole = len(data) - len(data) % self.chunk
            self._store(data[:whole])
            self._parts, self._pending = [data[whole:].copy()], len(data) - whole

    def tail(self) -> NDArray[Any]:
        """The rows [< chunk_rows, *row_shape] that are not on disk."""
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def finish(self) -> None:
        """Write what remains as a last, short chunk."""
        data = self.tail()
        if len(data):
            self._store(data)
            self._parts, self._pending = [data[:0]], 0

    def make_durable(self) -> None:
        """fsync the files written since the last call, and the folders that name them."""
        with write_errors(self.folder):
            for path in self._unsynced:
                sync(path)
            sync_names(self._unsynced, self.folder.parent, self._named)
        self._unsynced = []

    def _store(self, data: NDArray[Any]) -> None:
        first, stop = self._stored, self._stored + len(data)
        with write_errors(self.folder):
            self._array.resize((stop, *self._shape))
            self._array[first:stop] = data
        keys = _chunk_files(self._array, self.folder, range(first, stop, self.chunk))
        self._unsynced += [*keys, self.folder / _METADATA]
        self._stored = stop


class RowReader:
    """Checked reads of one array [rows, *row_shape] of a complete artifact."""

    def __init__(self, folder: Path, group: zarr.Group, name: str) -> None:
        """Raises CorruptArtifact when the array is not there."""
        self.folder = folder / name
        try:
            array = group[name]
        except Exception as error:  # KeyError, or zarr's own on damaged metadata
            raise CorruptArtifact(f"{self.folder} is missing or damaged", _REMAKE) from error
        if not isinstance(array, zarr.Array):
            raise CorruptArtifact(f"{self.folder} is not a zarr array", _REMAKE)
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self._held: tuple[int, NDArray[Any]] = (-1, np.zeros(0))
        """The chunk that was decoded last for a part of it, and its first row."""

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start:stop, clamped to the array, perhaps read-only. Cost: decoding the chunks that
        they touch, but for the one that was touched last."""
        start, stop, _ = slice(start, stop).indices(len(self))
        if stop <= start:
            return np.zeros((0, *self.shape[1:]), self.array.dtype)
        chunk = self.array.chunks[0]
        first = start - start % chunk
        if stop <= first + chunk:
            held, block = self._held
            if held != first:
                block = self._decode(first, min(first + chunk, len(self)))
                block.flags.writeable = False
                self._held = (first, block)
            return block[start - first : stop - first]
        return self._decode(start, stop)

    def _decode(self, start: int, stop: int) -> NDArray[Any]:
        chunk = self.array.chunks[0]
        self._require(range(start - start % chunk, stop, chunk))
        try:
            return np.asarray(self.array[start:stop])
        except Exception as error:  # any codec's complaint about damaged bytes
            raise CorruptArtifact(f"{self.folder} cannot be read ({error})", _REMAKE) from error

    def take(self, ids: ArrayLike) -> NDArray[Any]:
        """Rows `ids` [n] in any order. Cost: decoding each chunk that they touch once.

        Raises IndexError for an id outside the array.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"{self.folder} has rows 0 to {len(self) - 1}")
        rows = np.empty((len(wanted), *self.shape[1:]), self.array.dtype)
        chunk_of = wanted // self.array.chunks[0]
        for chunk in np.unique(chunk_of):
            here = np.flatnonzero(chunk_of == chunk)
            first = int(wanted[here].min())
            block = self.read(first, int(wanted[here].max()) + 1)
            rows[here] = block[wanted[here] - first]
        return rows

    def _require(self, rows: range) -> None:
        for file in _chunk_files(self.array, self.folder, rows):
            if not file.is_file():
                raise CorruptArtifact(f"{file} is missing", _REMAKE)


def _chunk_files(array: zarr.Array[Any], folder: Path, rows: range) -> list[Path]:
    """The file of the chunk that begins at each of `rows`."""
    rest = (0,) * (len(array.shape) - 1)
    metadata: Any = array.metadata
    return [folder / metadata.encode_chunk_key((row // array.chunks[0], *rest)) for row in rows]
