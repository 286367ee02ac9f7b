"""Eigenvectors of the covariances, and rotation into and out of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """An orthogonal, block-diagonal Q [D, D]: `blocks` are its diagonal blocks [D_o, D_o].

    What is rotated is rounded to their type, and so is the result.
    """

    blocks: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return sum(block.shape[0] for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].dtype

    def into(self, x: Tensor) -> Tensor:
        """x Q for x [..., D]: coordinates in the eigenbasis. Cost: sum D_o² MACs a row."""
        return self._apply(x, transpose=False)

    def out_of(self, x: Tensor) -> Tensor:
        """x Qᵀ for x [..., D]: back from the eigenbasis. Cost: sum D_o² MACs a row."""
        return self._apply(x, transpose=True)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Basis:
        return Basis(tuple(block.to(dtype=dtype, device=device) for block in self.blocks))

    def _apply(self, x: Tensor, *, transpose: bool) -> Tensor:
        # One matrix of rows: torch makes a batched product of a slice or a transpose, with a copy
        # of the block for each, which is ten times slower.
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        parts = rows.split([block.shape[0] for block in self.blocks], dim=-1)
        turned = [
            part @ (block.T if transpose else block)
            for part, block in zip(parts, self.blocks, strict=True)
        ]
        whole = turned[0] if len(turned) == 1 else torch.cat(turned, dim=-1)
        return whole.view(x.shape)


def decompose(covariance: list[Tensor], *, fast: bool = False) -> tuple[Tensor, Basis]:
    """Eigenvalues [D] (ascending within a block, none below 0) and eigenvectors.

    `covariance` holds symmetric float64 blocks. `fast` decomposes in float32 what passes a check
    of the result, in half the time, and returns float32 vectors; values are then exact to float32's
    share of the largest. Raises torch.linalg.LinAlgError when a block does not converge (NaN).
    Cost: about 9·D_o³ FLOPs a block.
    """
    return decompose_all([covariance], fast=fast)[0]


def decompose_all(
    covariances: Sequence[list[Tensor]], *, fast: bool = False
) -> list[tuple[Tensor, Basis]]:
    """As `decompose`, for several matrices: all blocks of one size are one batch of LAPACK's."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, covariance in enumerate(covariances):
        for part, block in enumerate(covariance):
            places.setdefault(len(block), []).append((number, part))
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for alike in places.values():
        blocks = [covariances[number][part] for number, part in alike]
        found |= dict(zip(alike, _eigh(blocks, fast), strict=True))
    decomposed = []
    for number, covariance in enumerate(covariances):
        parts = [found[number, part] for part in range(len(covariance))]
        # A covariance has no negative eigenvalue; what rounding makes of zero is not curvature.
        values = [part.double().clamp_(min=0.0) for part, _ in parts]
        decomposed.append((torch.cat(values), Basis(tuple(vectors for _, vectors in parts))))
    return decomposed


_LARGEST_ERROR = 1e-4
_PROBES = 16


def _eigh(blocks: list[Tensor], fast: bool) -> list[tuple[Tensor, Tensor]]:
    """Eigenvalues and vectors of blocks of one size; of each in float32 if that is good enough."""
    # One matrix alone is not copied.
    stack = torch.stack(blocks) if len(blocks) > 1 else blocks[0].unsqueeze(0)
    if not fast:
        return list(zip(*torch.linalg.eigh(stack), strict=True))
    single = stack.float()
    try:
        values, q = torch.linalg.eigh(single)
    except RuntimeError:  # torch.linalg.LinAlgError: one of them did not converge
        if len(blocks) == 1:
            return _eigh(blocks, fast=False)
        return [_eigh([block], fast)[0] for block in blocks]
    good = _good(single, values, q)
    return [
        (values[number], q[number]) if good[number] else _eigh([block], fast=False)[0]
        for number, block in enumerate(blocks)
    ]


def _good(stack: Tensor, values: Tensor, q: Tensor) -> list[bool]:
    """Whether A Q - Q diag(λ) and QᵀQ - I are small, for each A [D, D] of a stack.

    Both are applied to random vectors, which no error of size escapes and which costs 1/D of
    forming them: as much as half of the decomposition.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(q.shape[-1], _PROBES, generator=draw).to(q)
    turned = q @ x
    residual = stack @ turned - q @ (values.unsqueeze(-1) * x)
    # Of length sqrt(D), x is turned by Q into as long a vector; A stretches it by ‖A‖ at most.
    size = (stack.norm(dim=(1, 2)) * math.sqrt(_PROBES)).clamp(min=1e-30)
    error = residual.norm(dim=(1, 2)) / size
    skew = (q.mT @ turned - x).abs().amax((1, 2))
    return [bool(good) for good in (error < _LARGEST_ERROR) & (skew < _LARGEST_ERROR)]
