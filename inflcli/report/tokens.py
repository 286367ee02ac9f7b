"""The text of single tokens, such that they join to the text that they encode.

A byte-level tokenizer cuts characters: an emoji may be three tokens, none of which is text by
itself. Such tokens are joined to one unit. Nothing is taken on trust: each way of reading the
vocabulary's pieces is used only if the pieces join to what the tokenizer itself decodes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTEXT = 8
"""Tokens of context for tokenizers whose pieces cannot be read."""


@dataclass(frozen=True)
class Units:
    """Display strings, how many tokens each is, and which are special tokens."""

    texts: list[str]
    counts: list[int]
    special: frozenset[int]

    def unit_of_token(self) -> list[int]:
        """The unit that each token is in."""
        return [unit for unit, count in enumerate(self.counts) for _ in range(count)]

    def pool(self, values: ArrayLike) -> NDArray[np.float64]:
        """Sum values [..., token] into values [..., unit]."""
        summed = np.asarray(values, np.float64)
        if not self.counts:
            return summed[..., :0]
        starts = np.cumsum([0, *self.counts[:-1]])
        return np.add.reduceat(summed, starts, axis=-1)


class TokenText:
    """Cuts token ids into units of text, with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of transformers'."""
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._added = {number: token for token, number in tokenizer.get_added_vocab().items()}

    def units(self, ids: Sequence[int]) -> Units:
        """The units of `ids`. Cost: one decoding of the whole for tokenizers whose pieces join."""
        ids = [int(number) for number in ids]
        for read in (_byte_level, _byte_fallback):
            pieces = self._pieces(ids, read)
            if pieces is None:
                continue
            texts, counts = _join_characters(pieces)
            whole, joined = self._decode(ids), "".join(texts)
            if joined == whole:
                return self._mark(ids, texts, counts)
            if joined == " " + whole:
                # SentencePiece's dummy space; it stays where it is all that its token has to show.
                return self._mark(ids, [texts[0][1:] or " ", *texts[1:]], counts)
        return self._mark(ids, *self._by_context(ids))

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _pieces(self, ids: list[int], read: Callable[[str], bytes | None]) -> list[bytes] | None:
        """The bytes of each token; None when one cannot be read this way."""
        found = []
        tokens = self._tokenizer.convert_ids_to_tokens(ids)
        for number, token in zip(ids, tokens, strict=True):
            added = self._added.get(number)
            piece = read(token or "") if added is None else added.encode("utf-8", "replace")
            if piece is None:
                return None
            found.append(piece)
        return found

    def _by_context(self, ids: list[int]) -> tuple[list[str], list[int]]:
        """Each token as what it adds to the decoding of the few before it."""
        texts: list[str] = []
        counts: list[int] = []
        first = 0
        for last in range(len(ids)):
            context = max(0, first - _CONTEXT)
            added = self._decode(ids[context : last + 1])[len(self._decode(ids[context:first])) :]
            # Four bytes make a character: after four tokens a mark of damage is really in the text.
            if added.endswith("\ufffd") and last - first < 3 and last + 1 < len(ids):
                continue
            texts.append(added)
            counts.append(last + 1 - first)
            first = last + 1
        return texts, counts

    def _mark(self, ids: list[int], texts: list[str], counts: list[int]) -> Units:
        special, first = set(), 0
        for unit, count in enumerate(counts):
            if count == 1 and ids[first] in self._special:
                special.add(unit)
            first += count
        return Units(texts, counts, frozenset(special))


def _join_characters(pieces: Sequence[bytes]) -> tuple[list[str], list[int]]:
    """Join pieces until they end with a whole character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts: list[str] = []
    counts: list[int] = []
    text, count = "", 0
    for number, piece in enumerate(pieces):
        text += decoder.decode(piece, final=number + 1 == len(pieces))
        count += 1
        if not decoder.getstate()[0]:
            texts.append(text)
            counts.append(count)
            text, count = "", 0
    return texts, counts


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones stand for themselves,
    the others for the code points from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


@cache
def _byte_level(token: str) -> bytes | None:
    alphabet = _byte_alphabet()
    if any(character not in alphabet for character in token):
        return None
    return bytes(alphabet[character] for character in token)


@cache
def _byte_fallback(token: str) -> bytes | None:
    """Pieces as SentencePiece writes them, with <0xNN> for a single byte."""
    byte = _FALLBACK.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")
