"""Sequences from tokens: packed one after another, or one document each.

Both assemblers take encoded pieces in order, register a document when they first use it, and
collect finished sequences in `ready`. `state` and `restore` carry what is unfinished over an
interruption.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

from inflcli.artifacts.corpus import Span
from inflcli.corpus.documents import Document
from inflcli.corpus.encode import EncodedPiece

Register = Callable[[Document], int]
Sequence = tuple[list[int], list[Span]]

_SCALARS = ("document", "seen", "document_tokens")


class Assembler(ABC):
    """What both ways share: the open sequence and the document being read."""

    def __init__(self, seq_len: int, bos: int | None, register: Register) -> None:
        self.seq_len, self.register = seq_len, register
        self.head = [] if bos is None else [bos]
        self.ready: list[Sequence] = []
        self.counts: Counter[str] = Counter()
        self.tokens: list[int] = []
        self.spans: list[Span] = []
        self.document = -1
        """Index of the document being read; -1 before it is registered."""
        self.seen = 0
        """Character of that document up to which its tokens reach."""
        self.document_tokens = 0

    def add(self, piece: EncodedPiece) -> None:
        """Take the next piece."""
        if piece.ids:
            self.take(piece)
            self.document_tokens += len(piece.ids)
            self.seen = max(self.seen, piece.chars(len(piece.ids) - 1)[1])
        if piece.piece.last:
            self.end_document(piece.piece.document)
            self.document, self.seen, self.document_tokens = -1, 0, 0

    @abstractmethod
    def take(self, piece: EncodedPiece) -> None:
        """Take tokens of the piece into the open sequence."""

    @abstractmethod
    def end_document(self, document: Document) -> None:
        """Close the document that was being read."""

    def finish(self) -> None:
        """End the last sequence."""
        if self.tokens:
            self.flush()

    def flush(self) -> None:
        self.ready.append((self.tokens, self.spans))
        self.tokens, self.spans = [], []

    def take_ready(self) -> list[Sequence]:
        done, self.ready = self.ready, []
        return done

    def put(self, piece: EncodedPiece, first: int, stop: int) -> None:
        """Append tokens first:stop of `piece` to the open sequence, and say where from."""
        self.tokens = self.tokens or list(self.head)
        begin = len(self.tokens)
        self.tokens += piece.ids[first:stop]
        # From where the token before ended: some tokenizers leave spaces out of every token.
        reached = piece.chars(first - 1)[1] if first else self.seen
        start = min(reached, piece.chars(first)[0])
        end = max(piece.chars(stop - 1)[1], start)
        if self.spans and self.spans[-1][0] == self.document:
            start, begin = self.spans[-1][1], self.spans[-1][3]
            self.spans.pop()
        self.spans.append((self.document, start, end, begin, len(self.tokens)))

    def state(self) -> dict[str, Any]:
        """What is unfinished, as JSON values."""
        return {
            "tokens": self.tokens,
            "spans": self.spans,
            "counts": dict(self.counts),
            **{name: getattr(self, name) for name in _SCALARS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.tokens = list(state["tokens"])
        self.spans = [(a, b, c, d, e) for a, b, c, d, e in state["spans"]]
        self.counts = Counter(state["counts"])
        for name in _SCALARS:
            setattr(self, name, state[name])


class Packed(Assembler):
    """Documents one after another with `separator` between them, in full sequences."""

    def __init__(self, seq_len: int, bos: int | None, register: Register, separator: int) -> None:
        super().__init__(seq_len, bos, register)
        self.separator = separator

    def take(self, piece: EncodedPiece) -> None:
        if self.document < 0:
            self.document = self.register(piece.piece.document)
            if self.document > 0:
                self.tokens = self.tokens or list(self.head)
                self.tokens.append(self.separator)
                self._flush_if_full()
        done = 0
        while done < len(piece.ids):
            room = self.seq_len - (len(self.tokens) or len(self.head))
            stop = min(done + room, len(piece.ids))
            self.put(piece, done, stop)
            self._flush_if_full()
            done = stop

    def _flush_if_full(self) -> None:
        if len(self.tokens) == self.seq_len:
            self.flush()

    def end_document(self, document: Document) -> None:
        self.counts["empty"] += self.document_tokens == 0


class PerDocument(Assembler):
    """Each document is one sequence, cut at `seq_len`; nothing is added."""

    def take(self, piece: EncodedPiece) -> None:
        # The index that the document will have; it is registered once it is known to be kept.
        self.document = 0
        room = self.seq_len - (len(self.tokens) or len(self.head))
        stop = min(room, len(piece.ids))
        if stop:
            self.put(piece, 0, stop)

    def end_document(self, document: Document) -> None:
        if len(self.tokens) < 2:
            self.counts["empty" if self.document_tokens == 0 else "short"] += 1
            self.tokens, self.spans = [], []
            return
        self.counts["cut"] += self.document_tokens + len(self.head) > self.seq_len
        index = self.register(document)
        self.spans = [(index, *span[1:]) for span in self.spans]
        self.flush()
