"""The dense route: gradients DW of the sequences, and their products with V of the queries.

DW waits until there is enough of it for all queries to be worth going through. Then V is made dense
for some queries and some of its rows at a time, multiplied with all that waits, and forgotten:
never are all queries dense at once, however many they are, and all products are large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inflcli.influence.factored import FactoredQueries
from inflcli.influence.rows import as_rows, compiled, lengthened
from inflcli.shapes import SEQUENCES, round_up

_MANY, _FEW, _ENOUGH = 18, 4, 32
"""DW waits until there are an eighteenth as many as queries, or 32, but a quarter as many at most:
what waits must be small beside the queries, and is worth less the more of it there is."""
_FORMED, _FEWEST_FORMED = 1 << 25, 8
"""Numbers of DW that are formed at once where none waits, but so many sequences at least."""
_QUERIES, _BLOCK, _OUTPUTS = 128, 1 << 23, 16
"""Of V, so many queries are dense together, in so many numbers, of that many rows at least."""
_FEW_ROWS, _MORE_ROWS = 32, 40
"""Of the factors of a bfloat16 product on a CPU, both have few rows or both have more: else many
take several times longer."""
_SMALLEST_CACHE = 1 << 19
"""Bytes of the second cache of a core; 2 MiB where there is AMX."""
GRAIN = 32
"""A multiple of so many components, some of them zero, makes a query dense, so that products have
few shapes: each is compiled, which takes longer than a small product."""

Some = slice | Tensor
"""Queries, by their places, which are on the host."""
Write = Callable[[Tensor, slice], Tensor]
"""Writes into a block [n, p, M] a slice of the rows of some queries' V."""


def gradients_waiting(queries: int, sequences: float, chunk: int) -> int:
    """How many DW wait for each other, with batches of so many `sequences`; 0 if they do not.

    They wait for at most the end of a `chunk` of sequences.
    """
    enough = max(queries // _MANY, min(queries // _FEW, _ENOUGH))
    return min(enough, chunk) if enough > sequences else 0


def gradients_formed(outputs: int, inputs: int) -> int:
    """How many DW are formed at once where they do not wait."""
    return max(_FEWEST_FORMED, _FORMED // (outputs * inputs))


def block_numbers(outputs: int, inputs: int) -> int:
    """Numbers of the block of memory in which queries become dense."""
    return _QUERIES * _height(outputs, inputs) * inputs


class GradientQueries(ABC):
    """Queries that DW is multiplied with, in their type."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """Q, P and M."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def some(self, queries: Some) -> Write:
        """What makes these dense."""

    def together(self, most: int) -> Iterator[tuple[Some, int]]:
        """All queries, so many at a time as are dense together, and how many these are."""
        for queries in _slices(self.size[0], most):
            yield queries, queries.stop - queries.start

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: M P MACs a token to form DW, Q M P a sequence to score it."""
        scratch = Scratch.for_modules([self.size], self.dtype, a.device)
        gradients, rows = Gradients(self, scratch, 0), torch.arange(len(a))
        return torch.cat([scores for _, scores in gradients.add(rows, a, g)])

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q]. Cost: Q M P MACs a token."""
        rows, (count, outputs, inputs) = as_rows(g, self.dtype), self.size
        found = []
        for queries in _slices(count, max(1, _BLOCK // (outputs * inputs))):
            block = rows.new_empty(queries.stop - queries.start, outputs, inputs)
            for matrix in self.some(queries)(block, slice(0, outputs)):
                product = (rows @ matrix)[: a.shape[:2].numel()].to(a.dtype)
                found.append(torch.linalg.vecdot(product.view_as(a), a))
        return torch.stack(found, dim=-1)


@dataclass(frozen=True)
class DenseQueries(GradientQueries):
    """`matrices` [Q, P, M], one V a query."""

    matrices: Tensor

    @property
    def size(self) -> tuple[int, int, int]:
        count, outputs, inputs = self.matrices.shape
        return count, outputs, inputs

    @property
    def dtype(self) -> torch.dtype:
        return self.matrices.dtype

    def some(self, queries: Some) -> Write:
        return lambda block, outputs: block.copy_(self.matrices[queries, outputs])

    def outputs(self, a: Tensor) -> Tensor:
        """V a [..., P] of the only query, for a [..., M]. Cost: M P MACs a row."""
        return a @ self.matrices[0].T

    def select(self, query: int) -> DenseQueries:
        """One query alone."""
        return DenseQueries(self.matrices[query : query + 1])


@dataclass(frozen=True)
class ExpandedQueries(GradientQueries):
    """V_q = sum over k of left[k] right[k]ᵀ, for the k of row q of `components`.

    `left` [K + 1, P], `right` [K + 1, M], of which the last is zero; `components` [Q, n], a query's
    own first; `counts` [Q] on the host: how many these are.
    """

    left: Tensor
    right: Tensor
    components: Tensor
    counts: Tensor

    @classmethod
    def of(cls, queries: FactoredQueries) -> ExpandedQueries:
        """The same queries."""
        left, right = (
            torch.nn.functional.pad(factor, (0, 1)).T.contiguous()
            for factor in (queries.left, queries.right)
        )
        each = torch.bincount(queries.owner, minlength=queries.count)
        width = _grains(int(each.max()))
        numbers = torch.arange(len(queries.owner), device=queries.owner.device)
        first = each.cumsum(0) - each
        components = numbers.new_full((queries.count, width), len(numbers))
        components[queries.owner, numbers - first[queries.owner]] = numbers
        return cls(left, right, components, each.cpu())

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.components), self.left.shape[1], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    def together(self, most: int) -> Iterator[tuple[Some, int]]:
        """Those of about as many components: each costs as much as the one that has most."""
        order = self.counts.argsort(stable=True)
        for queries in _slices(len(order), most):
            yield order[queries], queries.stop - queries.start

    def some(self, queries: Some) -> Write:
        """Cost of writing: the most components that one of them has, in MACs a number."""
        width = _grains(int(self.counts[queries].max()))
        components = self.components[queries, :width]
        left, right = (factor[components] for factor in (self.left, self.right))
        return lambda block, rows: torch.bmm(left[:, :, rows].mT, right, out=block)

    def dense(self) -> DenseQueries:
        """All of them, held dense."""
        block = self.left.new_empty(self.size)
        return DenseQueries(self.some(slice(None))(block, slice(None)))


@dataclass(frozen=True)
class Scratch:
    """Memory for the time of a call, which modules share: new memory is several times slower."""

    block: Tensor
    """For queries that are made dense."""
    gradients: Tensor
    """For DW that does not wait."""

    @classmethod
    def for_modules(
        cls, sizes: Iterable[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
    ) -> Scratch:
        """Enough for queries of all these sizes."""
        block = gradients = 0
        for _, outputs, inputs in sizes:
            block = max(block, block_numbers(outputs, inputs))
            formed = _filled(gradients_formed(outputs, inputs))
            gradients = max(gradients, formed * outputs * inputs)
        return cls(*(torch.empty(n, dtype=dtype, device=device) for n in (block, gradients)))


@dataclass
class Gradients:
    """DW of the sequences of a module, which are scored when enough of them has come together.

    `waiting` says how many that is; 0 if DW of a batch is scored at once.
    """

    queries: GradientQueries
    scratch: Scratch
    waiting: int
    _rows: list[Tensor] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        _, outputs, inputs = self.queries.size
        self._heights = list(_slices(outputs, _height(outputs, inputs)))
        self._most = self.waiting or gradients_formed(outputs, inputs)
        memory, filled = self.scratch.gradients, _filled(self._most)
        if self.waiting:
            memory = memory.new_empty(filled * outputs * inputs)
        # A slice of rows after the other: products with a part of a longer row are slow.
        self._gradients = [
            memory[filled * height.start * inputs : filled * height.stop * inputs].view(filled, -1)
            for height in self._heights
        ]

    def add(self, rows: Tensor, a: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch [B, T, M], [B, T, P] of sequences `rows` [B].

        Yields rows [n] and scores [n, Q], of what waited, too. Cost: M P MACs a token, and those
        of `flush`.
        """
        taken = 0
        while taken < len(rows):
            part = slice(taken, taken + self._most - self._count)
            self._form(a[part], g[part])
            self._rows.append(rows[part])
            self._count += len(rows[part])
            taken += len(rows[part])
            if self._count == self._most or not self.waiting:
                yield from self.flush(a.dtype)

    def flush(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of all that waits, if anything does. Cost: Q M P MACs a sequence."""
        if self._count:
            rows, scores = torch.cat(self._rows), self._scores(dtype)
            self._rows, self._count = [], 0
            yield rows, scores

    def _form(self, a: Tensor, g: Tensor) -> None:
        """Put DW behind what waits."""
        element, inputs = self.queries.dtype, a.shape[2]
        at_once = len(a)
        if compiled(a, element):
            a, g, at_once = lengthened(a, element), lengthened(g, element), SEQUENCES
        a, g = a.to(element), g.to(element).mT
        for height, gradients in zip(self._heights, self._gradients, strict=True):
            found = gradients[self._count : self._count + len(a)].unflatten(1, (-1, inputs))
            for part in _slices(len(a), at_once):
                torch.bmm(g[part, height], a[part], out=found[part])

    def _scores(self, dtype: torch.dtype) -> Tensor:
        """[n, Q] of what waits."""
        count, _, inputs = self.queries.size
        found = self.scratch.block.new_zeros((self._count, count), dtype=dtype)
        for queries, some in self.queries.together(_QUERIES):
            write = self.queries.some(queries)
            for height, gradients in zip(self._heights, self._gradients, strict=True):
                numbers = (height.stop - height.start) * inputs
                rows, columns = _products(self._count, some, numbers, self.scratch.block)
                block = self.scratch.block[: columns * numbers].view(columns, -1, inputs)
                write(block[:some], height)
                block[some:] = 0
                gradients[self._count : rows] = 0
                product = block.flatten(1) @ gradients[:rows].T
                found[:, queries] += product[:some, : self._count].T
        return found


def _height(outputs: int, inputs: int) -> int:
    """Rows of V that are made dense at once."""
    fitting = _BLOCK // (_QUERIES * inputs) // _OUTPUTS * _OUTPUTS
    return min(outputs, max(_OUTPUTS, fitting))


def _filled(rows: int) -> int:
    """The most rows that a product of so many may be filled up to."""
    return max(_MORE_ROWS, round_up(rows))


def _products(rows: int, columns: int, numbers: int, like: Tensor) -> tuple[int, int]:
    """Rows of both factors, [rows, numbers] and [columns, numbers], filled up with zeros.

    So that there are few shapes, and fast ones. Where the second's are few, and as many numbers as
    three quarters of a core's second cache has bytes, which is three times a power of two, oneDNN
    divides by zero (torch 2.13, AMX).
    """
    if like.device.type != "cpu" or like.dtype != torch.bfloat16:
        return rows, columns
    rows, columns = round_up(rows), round_up(columns)
    third, rest = divmod(columns * numbers, 3)
    fatal = not rest and not third & (third - 1) and third >= _SMALLEST_CACHE // 4
    if max(rows, columns) <= _FEW_ROWS and not fatal:
        return rows, columns
    return max(_MORE_ROWS, rows), max(_MORE_ROWS, columns)


def _grains(components: int) -> int:
    return GRAIN * -(-components // GRAIN)


def _slices(count: int, step: int) -> Iterator[slice]:
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
