"""TF-IDF scores of token sequences, in two streaming passes.

Axes: Q queries, D sequences (the "documents" of TF-IDF), V distinct tokens of all queries, T
positions. With C sequences of which count(t) hold token t,

    IDF(t)      = log((C - count(t) + 0.5) / (count(t) + 0.5) + 1)
    score(q, d) = sum over q's tokens t, with repetition, of [(k1 + 1) e / (k1 + e)] IDF(t)

where e is 1 if t occurs in d and else 0: the bracket is then 1 or 0 whatever k1 is. The paper
prints T as the document's length where its words say the query's.

Sums run in float64 in a fixed order of tokens, so a score does not depend on how the corpus is cut
into blocks; it is rounded to float32 before it is compared, so equal sums tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class QueryTerms:
    """The distinct tokens of all queries, and how often each query has each."""

    terms: NDArray[np.int64]
    """[V] token ids, ascending."""
    counts: sparse.csr_matrix
    """[V, Q] occurrences, float64."""

    @classmethod
    def of(cls, queries: Sequence[Sequence[int]]) -> QueryTerms:
        """Build from the token ids of each query; a query without tokens scores 0 everywhere."""
        flat = np.array([token for query in queries for token in query], np.int64)
        column = np.repeat(np.arange(len(queries)), [len(query) for query in queries])
        terms, row = np.unique(flat, return_inverse=True)
        counts = sparse.csr_matrix(
            (np.ones(len(flat)), (row.reshape(-1), column)), shape=(len(terms), len(queries))
        )
        return cls(terms, counts)

    def occurrence(
        self, tokens: NDArray[np.integer], lengths: NDArray[np.integer]
    ) -> sparse.csr_matrix:
        """Which sequences hold which terms: [D, V] of 1.0 and absent.

        `tokens` [D, T], of which the first `lengths` [D] of each row count. Cost: O(D T log V).
        """
        place = np.searchsorted(self.terms, tokens)
        place[place == len(self.terms)] = 0
        valid = np.arange(tokens.shape[1]) < np.asarray(lengths)[:, None]
        known = valid & (self.terms[place] == tokens) if len(self.terms) else valid & False
        present = np.zeros((len(tokens), len(self.terms)), bool)
        row, position = np.nonzero(known)
        present[row, place[row, position]] = True
        return sparse.csr_matrix(present, dtype=np.float64)

    def weights(self, frequency: NDArray[np.int64], sequences: int) -> sparse.csr_matrix:
        """[V, Q] IDF times occurrences in the query.

        `frequency` [V] is count(t) over all `sequences` of the corpus.
        """
        return sparse.csr_matrix(sparse.diags(idf(frequency, sequences)) @ self.counts)


def idf(frequency: NDArray[np.int64], sequences: int) -> NDArray[np.float64]:
    """IDF in nats of terms that `frequency` of the `sequences` hold; always positive."""
    return np.log((sequences - frequency + 0.5) / (frequency + 0.5) + 1.0)


def block_frequency(occurrence: sparse.csr_matrix) -> NDArray[np.int64]:
    """First pass: how many sequences of a block hold each term, [V] from [D, V]."""
    return np.bincount(occurrence.indices, minlength=occurrence.shape[1]).astype(np.int64)


def block_scores(occurrence: sparse.csr_matrix, weights: sparse.csr_matrix) -> NDArray[np.float32]:
    """Second pass: scores [Q, D] of a block, one sparse product for all queries."""
    return np.asarray((occurrence @ weights).todense(), np.float64).T.astype(np.float32)


def all_scores(
    tokens: NDArray[np.integer], lengths: NDArray[np.integer], queries: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Scores [Q, D] of a corpus in memory: `tokens` [D, T], `lengths` [D]."""
    terms = QueryTerms.of(queries)
    occurrence = terms.occurrence(tokens, lengths)
    weights = terms.weights(block_frequency(occurrence), len(tokens))
    return block_scores(occurrence, weights)


class TopCandidates:
    """The `k` best sequences a query over a stream of blocks, in any order of blocks.

    Higher scores first, then lower sequence numbers. Memory: 24 k bytes a query.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.ids = [np.zeros(0, np.int64) for _ in range(queries)]
        self.scores = [np.zeros(0, np.float32) for _ in range(queries)]
        self._least = np.full(queries, -np.inf)

    def update(self, first: int, scores: NDArray[np.float32]) -> None:
        """Add scores [Q, D] of the sequences from number `first` on.

        Cost: a comparison a score, and a sort whenever k new ones have come in.
        """
        for query, row in enumerate(scores):
            self.update_one(query, first, row)

    def update_one(self, query: int, first: int, row: NDArray[np.float32]) -> None:
        """Add scores [D] of one query."""
        column = np.flatnonzero(row >= self._least[query])
        if not len(column):
            return
        self.ids[query] = np.concatenate([self.ids[query], first + column])
        self.scores[query] = np.concatenate([self.scores[query], row[column]])
        if len(self.ids[query]) >= 2 * self.k:
            self._trim(query)

    def _trim(self, query: int) -> None:
        order = np.lexsort((self.ids[query], -self.scores[query]))[: self.k]
        self.ids[query] = self.ids[query][order]
        self.scores[query] = self.scores[query][order]
        if len(order) == self.k:
            self._least[query] = self.scores[query][-1]

    def ranked(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """ids [Q, k], -1 past the last, and scores [Q, k], NaN there; best first."""
        ids = np.full((len(self.ids), self.k), -1, np.int64)
        scores = np.full(ids.shape, np.nan, np.float32)
        for query in range(len(self.ids)):
            self._trim(query)
            ids[query, : len(self.ids[query])] = self.ids[query]
            scores[query, : len(self.ids[query])] = self.scores[query]
        return ids, scores

    def restore(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Go on from what `ranked` gave."""
        for query in range(len(self.ids)):
            there = ids[query] >= 0
            self.ids[query], self.scores[query] = ids[query][there], scores[query][there]
            self._trim(query)
