"""Documents, and the records that cannot become one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BLOCK_CHARS = 1 << 20
_LONGEST_FIELD = 500


@dataclass(frozen=True)
class Document:
    """One text and where it stands. `blocks` yields the text in order and can be read once."""

    id: str | None
    file: str
    line: int
    """Line of a file, row of a table; from 1."""
    metadata: dict[str, Any]
    blocks: Iterable[str]
    position: int = 0
    """Bytes of the file on disk that are read so far, for the progress display."""


@dataclass(frozen=True)
class BadRecord:
    """A record that is refused, or counted with --skip-bad."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def from_record(
    raw: Mapping[str, Any], text_field: str, file: str, line: int, position: int
) -> Document | BadRecord:
    """A document from a JSON object or a table's row."""
    text = raw.get(text_field)
    if text is None:
        return BadRecord(file, line, f"no {text_field!r}")
    if not isinstance(text, str):
        return BadRecord(file, line, f"{text_field!r} is not a string")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return BadRecord(file, line, f"{text_field!r} holds half of a surrogate pair")
    name = raw.get("id")
    document_id = str(name) if isinstance(name, str | int) else None
    return Document(document_id, file, line, _metadata(raw, text_field), blocks_of(text), position)


def blocks_of(text: str) -> Iterator[str]:
    """A text in parts, so that a long one is never copied as a whole."""
    if len(text) <= BLOCK_CHARS:
        yield text
        return
    for start in range(0, len(text), BLOCK_CHARS):
        yield text[start : start + BLOCK_CHARS]


def _metadata(raw: Mapping[str, Any], text_field: str) -> dict[str, Any]:
    """The record's `metadata`, and its other fields where they are short and simple."""
    given = raw.get("metadata")
    found: dict[str, Any] = {}
    if isinstance(given, Mapping):
        found.update(given)
    elif given is not None:
        found["metadata"] = given
    for key, value in raw.items():
        simple = isinstance(value, str | int | float)
        if key in (text_field, "id", "metadata") or not simple:
            continue
        if not isinstance(value, str) or len(value) <= _LONGEST_FIELD:
            found.setdefault(key, value)
    return found
