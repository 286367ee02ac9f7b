"""The factored route: scores by the components of V, which never forms a gradient DW."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from inflcli.influence.rows import as_rows
from inflcli.shapes import round_up

_COLUMN_ELEMENTS = 1 << 23
"""Numbers of a K and of g L held at once."""


@dataclass(frozen=True)
class FactoredQueries:
    """V_q = sum over its columns k of left[:, k] right[:, k]ᵀ.

    `left` [P, K], `right` [M, K], `owner` [K], ascending: the query that column k belongs to.
    g L and a R are formed in their type, and added up in that of a and g.
    """

    left: Tensor
    right: Tensor
    owner: Tensor
    count: int

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: K (M + P) MACs a token."""
        shape, scores = a.shape[:2], a.new_zeros(a.shape[0], self.count)
        for part, rows in self._columns(a, g):
            columns = rows[: shape.numel()].unflatten(0, shape)
            scores.index_add_(1, self.owner[part], columns.sum(1, dtype=a.dtype))
        return scores

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q], at the cost of `sequence_scores` and K Q MACs a token."""
        found = (
            rows.to(a.dtype) @ self._membership[part].to(a.dtype)
            for part, rows in self._columns(a, g)
        )
        shape = a.shape[:2]
        return reduce(Tensor.add_, found)[: shape.numel()].unflatten(0, shape)

    def outputs(self, a: Tensor) -> Tensor:
        """V a [..., P] of the only query, for a [..., M]. Cost: K (M + P) MACs a row."""
        return (a @ self.right) @ self.left.T

    def padded(self) -> FactoredQueries:
        """With some more columns, which are zero, so that modules share a few K.

        A product is compiled once for every shape, which must not be one for each module.
        """
        more = round_up(self.left.shape[1]) - self.left.shape[1]
        last = self.owner.new_full((more,), self.count - 1)
        return FactoredQueries(
            torch.nn.functional.pad(self.left, (0, more)),
            torch.nn.functional.pad(self.right, (0, more)),
            torch.cat([self.owner, last]),
            self.count,
        )

    def select(self, query: int) -> FactoredQueries:
        """One query alone."""
        mine = self.owner == query
        owner = torch.zeros_like(self.owner[mine])
        return FactoredQueries(self.left[:, mine], self.right[:, mine], owner, 1)

    def _columns(self, a: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(g L) ⊙ (a R), some columns at a time; of all rows that `as_rows` gives."""
        step = max(1, _COLUMN_ELEMENTS // (a.shape[0] * a.shape[1]))
        a, g = as_rows(a, self.right.dtype), as_rows(g, self.left.dtype)
        for first in range(0, self.left.shape[1], step):
            part = slice(first, first + step)
            yield part, (g @ self.left[:, part]).mul_(a @ self.right[:, part])

    @cached_property
    def _membership(self) -> Tensor:
        """[K, Q]: 1 where the column belongs to the query."""
        member = self.left.new_zeros(len(self.owner), self.count)
        return member.scatter_(1, self.owner.unsqueeze(1), 1.0)
