"""Uncentred covariances of activations and output gradients (Eq. 16). Axes: rows [n, D]."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TILE = 512


def block_sizes(size: int, blocks: int) -> list[int]:
    """Cut `size` into `blocks` parts as equal as can be (the bias column makes sizes odd)."""
    return [len(part) for part in torch.arange(size).tensor_split(min(blocks, size))]


@dataclass
class CovarianceSum:
    """Running sum of x xᵀ, kept as the diagonal blocks of the block-diagonal variant (Eq. 33).

    `blocks` are [D_o, D_o] with sum D_o = D; one block is the full matrix. Of a wide block only the
    tiles on and right of the diagonal are kept up. `count` is the number of rows in the sum.
    """

    blocks: list[Tensor]
    count: int = 0

    @classmethod
    def zeros(
        cls, size: int, blocks: int, dtype: torch.dtype, device: torch.device
    ) -> CovarianceSum:
        sizes = block_sizes(size, blocks)
        return cls([torch.zeros(part, part, dtype=dtype, device=device) for part in sizes])

    def add(self, rows: Tensor, zeros: int = 0) -> None:
        """Add rows [n, D], of which the last `zeros` are zero and do not count.

        Cost: n · sum D_o² MACs, towards half of that for wide blocks.
        """
        rows = rows.to(self.blocks[0].dtype)
        parts = rows.split([block.shape[0] for block in self.blocks], dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            first = 0
            for width in block_sizes(len(block), -(-len(block) // TILE)):
                tile = slice(first, first + width)
                block[tile, first:].addmm_(part[:, tile].T, part[:, first:])
                first += width
        self.count += rows.shape[0] - zeros

    def move(self, device: torch.device) -> None:
        self.blocks = [block.to(device) for block in self.blocks]

    def doubled(self, device: torch.device) -> CovarianceSum:
        """A copy in float64."""
        blocks = [block.to(device, torch.float64, copy=True) for block in self.blocks]
        return CovarianceSum(blocks, self.count)

    def join(self, other: CovarianceSum) -> None:
        """Add another's rows."""
        for block, more in zip(self.blocks, other.blocks, strict=True):
            block += more.to(block.device)
        self.count += other.count

    def inner(self, other: CovarianceSum) -> float:
        """tr(X Y) of two sums X, Y. Cost: reading both."""
        total = 0.0
        for one, two in zip(self.blocks, other.blocks, strict=True):
            total += 2 * float(one.flatten() @ two.flatten())
            # What is right of a diagonal tile counts twice, the tile itself is whole.
            first = 0
            for width in block_sizes(len(one), -(-len(one) // TILE)):
                tile = slice(first, first + width)
                total -= float((one[tile, tile] * two[tile, tile]).sum())
                first += width
        return total

    def mean(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """E[x xᵀ] block by block, symmetric."""
        return [_mirrored(block.to(dtype) / max(self.count, 1)) for block in self.blocks]


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
