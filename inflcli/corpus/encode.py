"""Documents to tokens, with the characters that each token covers.

A long document is tokenised in pieces, so that memory does not grow with it. Neighbouring pieces
overlap by `CONTEXT` characters, and a token belongs to the piece in which it begins, so the tokens
are those of the whole text (tokenizers decide locally, well within that overlap).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inflcli.corpus.documents import Document
from inflcli.errors import BadInput

PIECE_CHARS = 1 << 18
CONTEXT = 1024


@dataclass(frozen=True)
class Piece:
    """Part of a document's text, with context on both sides."""

    document: Document
    number: int
    """Of the piece within its document, from 0."""
    text: str
    offset: int
    """Characters of the document before `text`."""
    start: int
    stop: int
    """Tokens that begin in text[start:stop] are this piece's."""
    last: bool

    @property
    def whole(self) -> bool:
        return self.last and self.number == 0


def pieces_of(document: Document, limit: int = PIECE_CHARS) -> Iterator[Piece]:
    """Cut a document into pieces of about `limit` characters."""
    text, offset, start, number = "", 0, 0, 0
    for block in document.blocks:
        text += block
        while len(text) >= start + limit + CONTEXT:
            cut = _border(text, start + limit // 2, start + limit)
            yield Piece(document, number, text[: cut + CONTEXT], offset, start, cut, False)
            drop = max(cut - CONTEXT, 0)
            text, offset, start, number = text[drop:], offset + drop, cut - drop, number + 1
    yield Piece(document, number, text, offset, start, len(text) + 1, True)


def _border(text: str, low: int, high: int) -> int:
    """A place to cut text[low:high]: before the last line or, failing that, the last word."""
    for mark in ("\n", " "):
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + (mark == "\n")
    return high


class EncodedPiece:
    """The tokens of a piece. Characters count from the start of the document."""

    def __init__(self, piece: Piece, encoding: Any, seen: int) -> None:
        """`seen` is the character up to which earlier pieces' tokens reach."""
        self.piece, self._encoding = piece, encoding
        self.ids: list[int] = encoding.ids
        self._first = 0
        if not piece.whole:
            start = max(piece.start, seen - piece.offset)
            kept = [
                index
                for index, (begin, _) in enumerate(encoding.offsets)
                if start <= begin < piece.stop
            ]
            self._first = kept[0] if kept else 0
            self.ids = self.ids[self._first : kept[-1] + 1] if kept else []

    def chars(self, index: int) -> tuple[int, int]:
        """The characters that token `index` of `ids` covers: start, end."""
        begin, end = self._encoding.token_to_chars(self._first + index)
        return self.piece.offset + begin, self.piece.offset + end


class Encoder:
    """Tokenises texts in batches, without special tokens."""

    def __init__(self, tokenizer: Any, label: str) -> None:
        """Raises BadInput for a tokenizer that cannot tell which characters a token covers."""
        if not getattr(tokenizer, "is_fast", False):
            raise BadInput(f"the tokenizer {label} has no fast version (tokenizer.json)")
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may ask for either; a corpus wants neither.
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, pieces: Sequence[Piece]) -> list[Any]:
        """One `tokenizers.Encoding` a piece."""
        texts = [piece.text for piece in pieces]
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=False)
        return encodings
