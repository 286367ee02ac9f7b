"""Scores of a batch of training sequences against all queries, for one module (Eqs. 24, 30, 31).

With V_q the preconditioned gradient of query q [P, M], and a [B, T, M], g [B, T, P] of the batch:

    token score     s[b, t, q] = g[b, t]ᵀ V_q a[b, t]
    sequence score  s[b, q]    = sum over t

Two routes give the same numbers to rounding: `DenseQueries` forms the sequences' gradients,
`FactoredQueries` never does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_TOKEN_SCORE_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class FactoredQueries:
    """V_q = sum over its columns k of left[:, k] right[:, k]ᵀ.

    `left` [P, K], `right` [M, K], `owner` [K]: the query that column k belongs to.
    """

    left: Tensor
    right: Tensor
    owner: Tensor
    count: int

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: K (M + P) MACs a token."""
        return self._by_query(((g @ self.left) * (a @ self.right)).sum(1))

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q], at the cost of `sequence_scores`."""
        return self._by_query((g @ self.left) * (a @ self.right))

    def dense(self) -> DenseQueries:
        """The same queries as full matrices [Q, P, M]. Cost: K P M MACs, once."""
        members = [self.owner == query for query in range(self.count)]
        return DenseQueries(torch.stack([self.left[:, m] @ self.right[:, m].T for m in members]))

    def select(self, query: int) -> FactoredQueries:
        """One query alone."""
        mine = self.owner == query
        owner = torch.zeros_like(self.owner[mine])
        return FactoredQueries(self.left[:, mine], self.right[:, mine], owner, 1)

    def _by_query(self, columns: Tensor) -> Tensor:
        """Sum the columns [..., K] of each query: [..., Q]."""
        scores = columns.new_zeros((*columns.shape[:-1], self.count))
        return scores.index_add_(-1, self.owner, columns)


@dataclass(frozen=True)
class DenseQueries:
    """`matrices` [Q, P, M], one V a query."""

    matrices: Tensor

    @property
    def count(self) -> int:
        return self.matrices.shape[0]

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: M P MACs a token to form the gradients, Q M P a sequence to score them."""
        gradients = g.mT @ a
        return gradients.flatten(1) @ self.matrices.flatten(1).T

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q]. Cost: Q M P MACs a token."""
        rows = max(1, _TOKEN_SCORE_ELEMENTS // max(a.numel(), 1))
        parts = [
            torch.einsum("btqm,btm->btq", torch.einsum("btp,qpm->btqm", g, part), a)
            for part in self.matrices.split(rows)
        ]
        return torch.cat(parts, dim=-1)

    def select(self, query: int) -> DenseQueries:
        """One query alone."""
        return DenseQueries(self.matrices[query : query + 1])


Queries = FactoredQueries | DenseQueries
