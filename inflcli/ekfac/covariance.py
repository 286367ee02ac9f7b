"""Uncentred covariances of activations and output gradients (Eq. 16). Axes: rows [n, D]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TILE = 512
_CACHED = 1 << 17
"""Numbers worked on at once in float64."""


def block_sizes(size: int, blocks: int) -> list[int]:
    """Cut `size` into `blocks` parts as equal as can be (the bias column makes sizes odd)."""
    return [len(part) for part in torch.arange(size).tensor_split(min(blocks, size))]


@dataclass
class CovarianceSum:
    """Running sum of x xᵀ, kept as the diagonal blocks of the block-diagonal variant (Eq. 33).

    `blocks` are [D_o, D_o] with sum D_o = D; one block is the full matrix. Of a wide block only the
    tiles on and right of the diagonal are kept up. `count` is what the mean is taken over: the
    number of rows in the sum, or of the sequences whose gradients they are.
    """

    blocks: list[Tensor]
    count: int = 0

    @classmethod
    def zeros(
        cls, size: int, blocks: int, dtype: torch.dtype, device: torch.device
    ) -> CovarianceSum:
        sizes = block_sizes(size, blocks)
        return cls([torch.zeros(part, part, dtype=dtype, device=device) for part in sizes])

    def add(
        self,
        rows: Tensor,
        zeros: int = 0,
        sequences: int | None = None,
        weighted: Tensor | None = None,
    ) -> None:
        """Add rows [n, D], of which the last `zeros` are zero and do not count.

        Where they are the gradient of one sequence, or several's, `sequences` are counted instead.
        With `weighted` [n, D] it is rowsᵀ weighted that is added, which must be symmetric.
        Cost: n · sum D_o² MACs, towards half of that for wide blocks.
        """
        rows = rows.to(self.blocks[0].dtype)
        sizes = [block.shape[0] for block in self.blocks]
        parts = rows.split(sizes, dim=1)
        others = parts if weighted is None else weighted.to(rows.dtype).split(sizes, dim=1)
        for block, part, other in zip(self.blocks, parts, others, strict=True):
            first = 0
            for width in block_sizes(len(block), -(-len(block) // TILE)):
                tile = slice(first, first + width)
                block[tile, first:].addmm_(part[:, tile].T, other[:, first:])
                first += width
        self.count += rows.shape[0] - zeros if sequences is None else sequences

    def move(self, device: torch.device) -> None:
        self.blocks = [block.to(device) for block in self.blocks]

    def mean(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """E[x xᵀ] block by block, symmetric."""
        return mean_covariance([[self]], dtype, self.blocks[0].device)[0]


def mean_covariance(
    halves: Sequence[Sequence[CovarianceSum]], dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], float | None]:
    """E[x xᵀ] over all sums, block by block and symmetric, and how far the halves agree.

    `halves` are one or two lists of sums, which are added in float64, in their order. The agreement
    is the cosine between two halves' covariances, <X, Y> / (|X| |Y|): 1 if sampling plays no part;
    None of one half, or of nothing. Cost: reading them, once, a few rows at a time.
    """
    count = max(sum(part.count for half in halves for part in half), 1)
    products, means = torch.zeros(3, dtype=torch.float64, device=device), []
    for number, size in enumerate(map(len, halves[0][0].blocks)):
        mean, first = torch.empty(size, size, dtype=dtype, device=device), 0
        for width in block_sizes(size, -(-size // TILE)):
            step = max(1, _CACHED // size)
            for row in range(first, first + width, step):
                kept = slice(row, min(row + step, first + width)), slice(first, None)
                sums = [
                    added([part.blocks[number][kept] for part in half], device) for half in halves
                ]
                if len(sums) == 2:
                    products += _products(sums[0], sums[1], width)
                    sums[0] += sums[1]
                mean[kept] = sums[0].to(dtype) / count
            first += width
        means.append(_mirrored(mean))
    one, other, both = products.tolist()
    return means, both / math.sqrt(one * other) if one * other > 0 else None


def added(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Their sum, in float64 and in their order."""
    total = tensors[0].to(device, torch.float64, copy=True)
    for other in tensors[1:]:
        total += other.to(device)
    return total


def _products(x: Tensor, y: Tensor, width: int) -> Tensor:
    """<X, X>, <Y, Y> and <X, Y> of rows that begin with their `width` columns of a diagonal tile.

    What is right of that tile stands for what is left of it, too.
    """
    found = []
    for one, other in ((x, x), (y, y), (x, y)):
        tile = (one[:, :width] * other[:, :width]).sum()
        found.append(2 * (one.flatten() @ other.flatten()) - tile)
    return torch.stack(found)


def _mirrored(block: Tensor) -> Tensor:
    """Copy, in place, what is right of the diagonal to its left; tile by tile, within the cache."""
    tiles = block_sizes(len(block), -(-len(block) // TILE))
    edges = [sum(tiles[:number]) for number in range(len(tiles) + 1)]
    spans = [slice(*pair) for pair in pairwise(edges)]
    for number, rows in enumerate(spans):
        tile = block[rows, rows].triu()
        block[rows, rows] = tile + tile.triu(1).T
        for columns in spans[number + 1 :]:
            block[columns, rows] = block[rows, columns].T
    return block
