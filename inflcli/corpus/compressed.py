"""Byte streams of plain, gzip and zstandard files, with truncation noticed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from inflcli.errors import BadInput

SUFFIXES = (".gz", ".zst")
_BLOCK = 1 << 16


class Truncated(Exception):
    """A compressed stream ends in the middle."""


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The decompressed bytes of `path`, and the raw file, whose `tell` shows how far it is.

    Raises BadInput when the file cannot be opened, or its compression cannot be read; also for
    what goes wrong inside the `with` block.
    """
    with read_errors(path), path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as unpacked:
                yield cast(BinaryIO, unpacked), raw
        elif path.suffix == ".zst":
            yield cast(BinaryIO, io.BufferedReader(_ZstdStream(raw, path), 1 << 20)), raw
        else:
            yield raw, raw


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what the system or a decompressor says about `path` into BadInput."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, Truncated) as error:
        raise BadInput(f"{path} is damaged or truncated ({error})") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


class _ZstdStream(io.RawIOBase):
    """Decompresses zstandard frames one after another.

    The library's own reader ends quietly where a truncated file ends; this one raises.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise BadInput(
                f"{path} needs the package zstandard",
                "pip install 'inflcli[formats]', or unpack it",
            ) from error
        self._raw = raw
        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._unused = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._unused or self._raw.read(_BLOCK)
            if not data:
                if self._frame is not None:
                    raise Truncated("the last frame is not complete")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise Truncated(str(error)) from error
            self._unused = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
