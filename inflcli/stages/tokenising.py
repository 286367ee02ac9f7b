"""Text to a corpus's sequences: documents are read, tokenised and assembled in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts.corpus import CorpusLayout, CorpusWriter
from inflcli.config import PrepareConfig
from inflcli.corpus.assemble import Assembler, Packed, PerDocument
from inflcli.corpus.documents import BadRecord, Document
from inflcli.corpus.encode import EncodedPiece, Encoder, Piece, pieces_of
from inflcli.corpus.readers import ReadOptions, read_source
from inflcli.corpus.sources import TextSource
from inflcli.errors import BadInput

WAYPOINT_SEQUENCES = 1024
BATCH_CHARS = 1 << 18
BATCH_PIECES = 1024
CHUNK_ROWS = 1024
_SHOWN = 10


@dataclass(frozen=True)
class Position:
    """How far the text is consumed: sources, records of the next one, pieces of the next one."""

    source: int = 0
    record: int = 0
    piece: int = 0


@dataclass(frozen=True)
class _Item:
    what: Piece | BadRecord
    after: Position
    read: int
    """Bytes of all sources on disk that are read so far."""


@dataclass(frozen=True)
class Task:
    """What is made of which text."""

    layout: CorpusLayout
    sources: list[TextSource]
    config: PrepareConfig
    bos: int | None
    separator: int | None
    """Put between documents; None for a sequence of its own for each."""


def open_arrays(
    folder: Path,
    task: Task,
    rows: dict[str, int] | None,
    tails: dict[str, NDArray[Any]] | None = None,
) -> CorpusWriter:
    """The corpus's arrays, to be as long as `rows` says, whatever chunks are on disk."""
    return CorpusWriter(folder, task.layout, state=tails, counts=rows, chunk_rows=CHUNK_ROWS)


class Tokenising:
    """Everything that moves as the text is consumed."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        before: dict[str, Any],
        tails: dict[str, NDArray[Any]],
        rows: dict[str, int] | None,
    ) -> None:
        """Begin, or go on from `before` (see `state`), with `rows` in the arrays of which `tails`
        are not on disk."""
        self.task = task
        self.corpus = open_arrays(folder, task, rows, tails)
        length, separator = task.config.seq_len, task.separator
        self.assembler: Assembler = (
            PerDocument(length, task.bos, self._register)
            if separator is None
            else Packed(length, task.bos, self._register, separator)
        )
        self.position = Position(**before.get("position", {}))
        self.bad: list[str] = list(before.get("bad_records", []))
        self.tokens: int = before.get("tokens", 0)
        self.read = 0
        """Bytes of the text."""
        if before:
            self.assembler.restore(before["assembler"])
        self._next_waypoint = self._waypoint_after(self.corpus.n_sequences)

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON values."""
        return {
            "position": asdict(self.position),
            "bad_records": list(self.bad),
            "tokens": self.tokens,
            "assembler": self.assembler.state(),
        }

    def _register(self, document: Document) -> int:
        return self.corpus.add_document(
            document.id, document.file, document.line, document.metadata
        )

    def consume(self, encoder: Encoder, title: str, go_on: Callable[[], bool]) -> bool:
        """Read, tokenise and store all that is not yet, as long as `go_on` after each batch.

        Returns whether that was the whole text; then `finish`.
        """
        total = sum(source.size() for source in self.task.sources)
        with console.progress(
            title, total // 1024 or None, done=self.read // 1024, unit="KiB"
        ) as meter:
            for batch in _batches(_items(self.task.sources, self.task.config, self.position)):
                encodings = iter(
                    encoder.encode([one.what for one in batch if isinstance(one.what, Piece)])
                )
                for item in batch:
                    if isinstance(item.what, BadRecord):
                        self._count_bad(item.what)
                    else:
                        encoding = next(encodings)
                        self.assembler.add(EncodedPiece(item.what, encoding, self.assembler.seen))
                    self.position = item.after
                    self._mark()
                self._store()
                meter.advance(batch[-1].read // 1024 - self.read // 1024)
                self.read = batch[-1].read
                if not go_on():
                    return False
        return True

    def _mark(self) -> None:
        """Leave a waypoint after the item that makes the next thousand sequences full.

        Batches begin elsewhere in a run that goes on; items do not.
        """
        if self.corpus.n_sequences + len(self.assembler.ready) < self._next_waypoint:
            return
        self._store()
        self.corpus.add_waypoint(self.state())
        self._next_waypoint = self._waypoint_after(self.corpus.n_sequences)

    @staticmethod
    def _waypoint_after(sequences: int) -> int:
        return (sequences // WAYPOINT_SEQUENCES + 1) * WAYPOINT_SEQUENCES

    def _count_bad(self, record: BadRecord) -> None:
        if not self.task.config.skip_bad:
            raise BadInput(str(record), "mend it, or count such records with --skip-bad")
        self.assembler.counts["bad"] += 1
        if len(self.bad) < _SHOWN:
            self.bad.append(str(record))

    def _store(self) -> None:
        ready = self.assembler.take_ready()
        self.corpus.add_sequences([tokens for tokens, _ in ready], [spans for _, spans in ready])
        self.tokens += sum(len(tokens) for tokens, _ in ready)

    def finish(self) -> None:
        """Store the last sequence, and what fills no chunk."""
        self.assembler.finish()
        self._store()
        self.corpus.finish()


def _items(sources: list[TextSource], config: PrepareConfig, start: Position) -> Iterator[_Item]:
    """All pieces and bad records from `start` on."""
    options = ReadOptions(config.text_field, config.per_line)
    before = sum(source.size() for source in sources[: start.source])
    for index, source in enumerate(sources[start.source :], start.source):
        here = start if index == start.source else Position(index)
        reached = 0
        for number, record in enumerate(read_source(source, options, here.record), here.record):
            following = Position(index, number + 1)
            if isinstance(record, BadRecord):
                yield _Item(record, following, before + reached)
                continue
            skip = here.piece if number == here.record else 0
            for piece in pieces_of(record):
                if piece.number >= skip:
                    after = following if piece.last else Position(index, number, piece.number + 1)
                    # A text file's position is its end; its pieces tell how far they are.
                    shown = piece.offset + len(piece.text)
                    reached = max(
                        reached, record.position if piece.last else min(shown, record.position)
                    )
                    yield _Item(piece, after, before + reached)
        before += source.size()


def _batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Group items so that one call of the tokenizer has enough, and not too much, to do."""
    batch: list[_Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.what.text) if isinstance(item.what, Piece) else 0
        if chars >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
