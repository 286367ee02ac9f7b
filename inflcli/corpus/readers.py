"""Documents from each kind of source, streamed; a record that is no document is a BadRecord.

Every reader yields its records in order and can begin at any of them, so that a resumed run skips
what it has consumed. Memory holds one record (a block of one for a text file) at a time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflcli.corpus import sources
from inflcli.corpus.compressed import open_stream
from inflcli.corpus.documents import BLOCK_CHARS, BadRecord, Document, from_record
from inflcli.corpus.sources import TextSource
from inflcli.errors import BadInput

_BOM = b"\xef\xbb\xbf"
_ROWS = 256

Record = Document | BadRecord


@dataclass(frozen=True)
class ReadOptions:
    text_field: str = "text"
    per_line: bool = False
    """Whether each non-empty line of a text file is a document of its own."""


def read_source(source: TextSource, options: ReadOptions, start: int = 0) -> Iterator[Record]:
    """The records of `source` from number `start` on.

    Raises BadInput when the source as a whole cannot be read; what is wrong with one record is
    yielded as a BadRecord.
    """
    if source.kind == sources.JSONL:
        yield from _jsonl(source, options, start)
    elif source.kind == sources.PARQUET:
        yield from _parquet(source, options, start)
    elif source.kind in (sources.SAVED, sources.HUB):
        yield from _dataset(source, options, start)
    elif options.per_line:
        yield from _text_lines(source, start)
    elif start == 0:
        yield _text_file(source)


def _lines(path: Path, start: int) -> Iterator[tuple[int, bytes, int]]:
    """Line number, content and bytes read of the non-blank lines from the `start`-th on."""
    with open_stream(path) as (stream, raw):
        seen = 0
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.isspace() or not line:
                continue
            seen += 1
            if seen > start:
                yield number, line, raw.tell()


def _jsonl(source: TextSource, options: ReadOptions, start: int) -> Iterator[Record]:
    for number, line, position in _lines(source.path, start):
        try:
            raw = json.loads(line)
        except UnicodeDecodeError:
            yield BadRecord(source.name, number, "invalid UTF-8")
        except (ValueError, RecursionError) as error:
            yield BadRecord(source.name, number, f"not JSON ({error})")
        else:
            if isinstance(raw, dict):
                yield from_record(raw, options.text_field, source.name, number, position)
            else:
                yield BadRecord(source.name, number, "not a JSON object")


def _text_lines(source: TextSource, start: int) -> Iterator[Record]:
    for number, line, position in _lines(source.path, start):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            yield BadRecord(source.name, number, "invalid UTF-8")
        else:
            yield Document(None, source.name, number, {}, (text,), position)


def _text_file(source: TextSource) -> Record:
    # Checked as a whole first: half of a document must not have gone into the corpus already.
    line = 1
    try:
        for block in _decoded(source.path):
            line += block.count("\n")
    except UnicodeDecodeError as error:
        line += bytes(error.object[: error.start]).count(b"\n")
        return BadRecord(source.name, line, "invalid UTF-8")
    return Document(None, source.name, 1, {}, _decoded(source.path), source.size())


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with open_stream(path) as (stream, _):
        while block := stream.read(BLOCK_CHARS):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)


def _parquet(source: TextSource, options: ReadOptions, start: int) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(
            f"{source.name} needs the package pyarrow", "pip install 'inflcli[formats]'"
        ) from error
    try:
        with parquet.ParquetFile(source.path, pre_buffer=False) as table:
            _require_column(source, options.text_field, table.schema_arrow.names)
            total = max(table.metadata.num_rows, 1)
            number, size = 0, source.size()
            for batch in table.iter_batches(batch_size=_ROWS):
                skip = min(max(start - number, 0), batch.num_rows)
                number += skip
                for row in batch.slice(skip).to_pylist():
                    number += 1
                    position = size * number // total
                    yield from_record(row, options.text_field, source.name, number, position)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"cannot read {source.name} as Parquet ({error})") from error


def _dataset(source: TextSource, options: ReadOptions, start: int) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            f"{source.name} needs the package datasets", "pip install 'inflcli[datasets]'"
        ) from error
    rows: Any
    try:
        if source.kind == sources.SAVED:
            rows = datasets.load_from_disk(source.name)
            total = len(rows)
            rows = rows.select(range(min(start, total), total))
        else:
            name, _, config = source.name.partition(":")
            rows = datasets.load_dataset(
                name, config or None, split=source.split, revision=source.revision, streaming=True
            ).skip(start)
            total = 0
    except Exception as error:  # datasets raises ValueError, OSError, FileNotFoundError, ...
        raise BadInput(f"cannot read the dataset {source.name} ({error})") from error
    if rows.column_names is not None:
        _require_column(source, options.text_field, rows.column_names)
    yield from _numbered(rows, source, options.text_field, start, total)


def _numbered(
    rows: Any, source: TextSource, text_field: str, start: int, total: int
) -> Iterator[Record]:
    size = source.size()
    row: Mapping[str, Any]
    for number, row in enumerate(rows, start + 1):
        position = size * number // total if total else 0
        yield from_record(row, text_field, source.name, number, position)


def _require_column(source: TextSource, text_field: str, names: list[str]) -> None:
    if text_field not in names:
        raise BadInput(
            f"{source.name} has no column {text_field!r}",
            f"choose one with --text-field: {', '.join(names)}",
        )
