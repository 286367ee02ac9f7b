"""The classic BM25 variants of the package rank-bm25, on token ids.

They hold a dictionary of counts for every sequence, so they are for corpora that fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.corpus import CorpusReader

BYTES_PER_TOKEN = 120
"""About what rank-bm25 takes for a token while it builds its index."""
_BLOCK = 1024


def build(corpus: CorpusReader, variant: str) -> Any:
    """An index of `corpus`; `variant` is okapi, l or plus, with the package's own parameters."""
    import rank_bm25

    kinds = {
        "okapi": rank_bm25.BM25Okapi,
        "l": rank_bm25.BM25L,
        "plus": rank_bm25.BM25Plus,
    }
    return kinds[variant](list(_sequences(corpus)))


def scores(index: Any, queries: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
    """The scores [N] of all sequences, a query at a time. Cost: N dictionary look-ups a token."""
    for query in queries:
        yield np.asarray(index.get_scores(list(query)), np.float32)


def _sequences(corpus: CorpusReader) -> Iterator[list[int]]:
    for start in range(0, corpus.n_sequences, _BLOCK):
        block = corpus.tokens(start, start + _BLOCK)
        for row, length in zip(block, corpus.lengths[start : start + _BLOCK], strict=True):
            yield row[:length].tolist()
