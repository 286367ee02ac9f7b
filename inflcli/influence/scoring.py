"""Scores of a batch of training sequences against all queries, for one module (Eqs. 24, 30, 31).

With V_q the preconditioned gradient of query q [P, M], and a [B, T, M], g [B, T, P] of the batch:

    token score     s[b, t, q] = g[b, t]ᵀ V_q a[b, t]
    sequence score  s[b, q]    = sum over t

Three routes. `DenseQueries` forms the sequences' gradients DW, `FactoredQueries` never does; they
give the same numbers to rounding. `SharedQueries` (in `shared`) forms DW in a basis that all
queries have in common, and is exact only where that basis spans them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from torch import Tensor

from inflcli.shapes import SEQUENCES, round_up

_GRADIENT_ELEMENTS = 1 << 25
"""Numbers of DW formed at once."""
QUERIES_A_GRADIENT = 16
"""Queries for every DW that waits: waiting takes a sixteenth of the queries' memory at most."""
_GRAIN, _QUERIES_AT_ONCE = 32, 64
"""When queries are made dense: components are a multiple of the one, for as many as the other."""
_SMALLEST_CACHE = 1 << 19
"""Bytes of the second cache of a core; 2 MiB where there is AMX."""
_COLUMN_ELEMENTS = 1 << 23
"""Numbers of a K and of g L held at once."""


def gradients_formed(outputs: int, inputs: int) -> int:
    """How many sequences' DW are formed at once."""
    return max(1, _GRADIENT_ELEMENTS // (outputs * inputs))


def scored_together(sequences: float, queries: int, outputs: int, inputs: int) -> float:
    """Sequences that one reading of the dense queries serves, with batches of `sequences`."""
    formed = min(sequences, gradients_formed(outputs, inputs))
    return max(formed, queries // QUERIES_A_GRADIENT)


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

    def dense(self) -> DenseQueries:
        """The same queries as full matrices [Q, P, M]. Cost: K P M MACs, once."""
        matrices = self.left.new_empty((self.count, self.left.shape[0], self.right.shape[0]))
        columns = torch.bincount(self.owner, minlength=self.count)
        # All queries get as many columns, some of them zero, and modules much the same number: a
        # product of another shape would be compiled for each, which takes longer than itself.
        width = _GRAIN * -(-int(columns.max()) // _GRAIN)
        sums = columns.cumsum(0)
        numbers = torch.arange(len(self.owner), device=self.owner.device)
        place = self.owner * width + numbers - (sums - columns)[self.owner]
        ends = sums.tolist()
        for first in range(0, self.count, _QUERIES_AT_ONCE):
            last = min(first + _QUERIES_AT_ONCE, self.count)
            part = slice(ends[first - 1] if first else 0, ends[last - 1])
            left, right = (
                _spread(factor[:, part], place[part] - first * width, last - first, width)
                for factor in (self.left, self.right)
            )
            torch.bmm(left, right.mT, out=matrices[first:last])
        return DenseQueries(matrices)

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


def as_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, D] as rows [B T, D] of a type, followed by zeros where products are compiled."""
    if not _compiled(x, dtype):
        return x.to(dtype).flatten(0, 1)
    count = x.shape[0] * x.shape[1]
    rows = x.new_empty((round_up(count), x.shape[2]), dtype=dtype)
    rows[:count].view(x.shape).copy_(x)
    rows[count:] = 0
    return rows


def _longer(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, D] in a type, with zeros after T."""
    found = x.new_empty((x.shape[0], round_up(x.shape[1]), x.shape[2]), dtype=dtype)
    found[:, : x.shape[1]] = x
    found[:, x.shape[1] :] = 0
    return found


def _compiled(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product with it in that type is compiled for its shape, of which few should be.

    It is copied into that type in any case, so that some zeros more cost little.
    """
    return x.device.type == "cpu" and x.dtype != dtype == torch.bfloat16


def _not_of_the_caches_size(x: Tensor) -> Tensor:
    """Rows [n, K], with zero ones after them where oneDNN would divide by zero (torch 2.13, AMX).

    It does where up to 32 rows are as many numbers as three quarters of a core's second cache has
    bytes, which is three times a power of two.
    """
    third, rest = divmod(x.numel(), 3)
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or len(x) > 32:
        return x
    if rest or third & (third - 1) or third < _SMALLEST_CACHE // 4:
        return x
    return torch.nn.functional.pad(x, (0, 0, 0, 4 if len(x) == 1 else 1))


def _spread(factor: Tensor, place: Tensor, queries: int, width: int) -> Tensor:
    """The columns of a factor [D, k] at their places in [queries, D, width], zero elsewhere."""
    wide = factor.new_zeros(factor.shape[0], queries * width)
    return wide.index_copy_(1, place, factor).unflatten(1, (queries, width)).transpose(0, 1)


@dataclass(frozen=True)
class DenseQueries:
    """`matrices` [Q, P, M], one V a query. DW is formed and scored in their type."""

    matrices: Tensor

    @property
    def count(self) -> int:
        return self.matrices.shape[0]

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: M P MACs a token to form the gradients, Q M P a sequence to score them."""
        step = gradients_formed(*self.matrices.shape[1:])
        parts = [
            self.gradient_scores(self.gradients(a_part, g_part))
            for a_part, g_part in zip(a.split(step), g.split(step), strict=True)
        ]
        return torch.cat(parts).to(a.dtype)

    def gradients(self, a: Tensor, g: Tensor) -> Tensor:
        """DW [B, P M], in the queries' type. Cost: M P MACs a token."""
        element = self.matrices.dtype
        if not _compiled(a, element):
            return torch.bmm(g.to(element).mT, a.to(element)).flatten(1)
        a, g = _longer(a, element), _longer(g, element)
        found = a.new_empty(len(a), *self.matrices.shape[1:])
        for first in range(0, len(a), SEQUENCES):
            part = slice(first, first + SEQUENCES)
            torch.bmm(g[part].mT, a[part], out=found[part])
        return found.flatten(1)

    def gradient_scores(self, gradients: Tensor) -> Tensor:
        """[B, Q], in the queries' type. Cost: Q M P MACs a sequence."""
        # Almost all at once; the few at the end apart, so that there are few shapes.
        parts = gradients.tensor_split([len(gradients) // SEQUENCES * SEQUENCES])
        matrices = self.matrices.flatten(1).T
        padded = [(len(part), _not_of_the_caches_size(part)) for part in parts if len(part)]
        return torch.cat([(rows @ matrices)[:count] for count, rows in padded])

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q]. Cost: Q M P MACs a token."""
        rows, count = as_rows(g, self.matrices.dtype), a.shape[0] * a.shape[1]
        products = ((rows @ matrix)[:count].to(a.dtype).view_as(a) for matrix in self.matrices)
        return torch.stack([torch.linalg.vecdot(product, a) for product in products], dim=-1)

    def select(self, query: int) -> DenseQueries:
        """One query alone."""
        return DenseQueries(self.matrices[query : query + 1])


@dataclass
class WaitingGradients:
    """DW of several batches, scored together.

    Many queries take longer to read than to multiply with the few sequences of a batch, so these
    wait until there are enough: at a sixteenth of the queries' number both take about as long.
    """

    queries: DenseQueries
    _rows: list[Tensor] = field(default_factory=list)
    _gradients: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rows [n] and scores [n, Q] of what waited, and of this batch, if that is enough."""
        enough = self.queries.count // QUERIES_A_GRADIENT
        if len(rows) >= enough:
            return rows, self.queries.sequence_scores(a, g)
        self._rows.append(rows)
        self._gradients.append(self.queries.gradients(a, g))
        return self.flush(a.dtype) if sum(map(len, self._rows)) >= enough else None

    def flush(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """The same of all that waits; None if nothing does."""
        if not self._rows:
            return None
        rows, gradients = torch.cat(self._rows), torch.cat(self._gradients)
        self._rows, self._gradients = [], []
        return rows, self.queries.gradient_scores(gradients).to(dtype)
