"""What EK-FAC's steps cost in multiply-adds (MACs; two FLOPs each), from shapes alone.

P and M are a module's outputs and inputs, T a sequence's tokens; `blocks` are the diagonal blocks
of each covariance.
"""

from __future__ import annotations

import torch

from inflcli.ekfac.corrected import rotate_first
from inflcli.ekfac.covariance import TILE, block_sizes
from inflcli.ekfac.lowrank import is_exact


def covariance_macs(size: int, blocks: int) -> int:
    """Of adding a row [D] to a covariance: the tiles on and right of the diagonal."""
    macs = 0
    for block in block_sizes(size, blocks):
        widths = block_sizes(block, -(-block // TILE))
        macs += sum(width * (block - sum(widths[:tile])) for tile, width in enumerate(widths))
    return macs


def sequence_covariance_macs(tokens: float, outputs: int, inputs: int, blocks: int) -> float:
    """Of a sequence's part in E[DWᵀ DW] and E[DW DWᵀ], by the cheaper way (`through_gram`)."""
    formed = _through_gradient(tokens, outputs, inputs, blocks)
    return min(formed, _through_gram(tokens, outputs, inputs, blocks))


def through_gram(tokens: float, outputs: int, inputs: int, blocks: int) -> bool:
    """Whether aᵀ (g gᵀ) a and gᵀ (a aᵀ) g are cheaper by way of the products in brackets [T, T]
    than by way of DW = gᵀ a: so where there are few tokens beside P and M."""
    through_gradient = _through_gradient(tokens, outputs, inputs, blocks)
    return _through_gram(tokens, outputs, inputs, blocks) < through_gradient


def rotation_macs(size: int, blocks: int) -> int:
    """Of turning a row [D] into the eigenbasis, or back."""
    return sum(block**2 for block in block_sizes(size, blocks))


def decomposition_macs(size: int, blocks: int) -> float:
    """Of the eigenvectors: about 9 D³ FLOPs a block."""
    return sum(4.5 * block**3 for block in block_sizes(size, blocks))


def corrected_macs(tokens: float, outputs: int, inputs: int, blocks: int) -> float:
    """Of a sequence's part in Λ: T (M² + P² + M P), or T M P + M P (M + P) where that is less."""
    formed = tokens * outputs * inputs
    return formed + _rotated(tokens, outputs, inputs, blocks)


def query_macs(
    tokens: float, outputs: int, inputs: int, rank: int | None, blocks: int, dtype: torch.dtype
) -> float:
    """Of preconditioning a query's gradient of T tokens and keeping `rank` components (None: all).

    Forming and rotating it, its truncation in `dtype`, and rotating what is kept back.
    """
    macs = corrected_macs(tokens, outputs, inputs, blocks)
    rows_a, rows_s = rotation_macs(inputs, blocks), rotation_macs(outputs, blocks)
    if rank is None:
        return macs + outputs * rows_a + inputs * rows_s
    short = min(outputs, inputs)
    if is_exact(short, rank, dtype):
        macs += short * outputs * inputs + 4.5 * short**3
    else:
        macs += (3.2 * rank + 96) * outputs * inputs
    return macs + rank * (rows_a + rows_s)


def _rotated(tokens: float, outputs: int, inputs: int, blocks: int) -> float:
    rows_a, rows_s = rotation_macs(inputs, blocks), rotation_macs(outputs, blocks)
    if rotate_first(tokens, outputs, inputs):
        return tokens * (rows_a + rows_s)
    return outputs * rows_a + inputs * rows_s


def _through_gradient(tokens: float, outputs: int, inputs: int, blocks: int) -> float:
    """T M P + P M² + M P²: DW, and its two products with itself."""
    squares = outputs * covariance_macs(inputs, blocks) + inputs * covariance_macs(outputs, blocks)
    return tokens * outputs * inputs + squares


def _through_gram(tokens: float, outputs: int, inputs: int, blocks: int) -> float:
    """2 T² (M + P) + T (M² + P²): two matrices [T, T], and products of them with a and g."""
    squares = covariance_macs(inputs, blocks) + covariance_macs(outputs, blocks)
    return 2 * tokens**2 * (inputs + outputs) + tokens * squares
