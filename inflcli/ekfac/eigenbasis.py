"""Eigenvectors of the covariances, and rotation into and out of them."""

from __future__ import annotations

import math
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
    share of the largest. Raises torch.linalg.LinAlgError
    when a block does not converge (NaN). Cost: about 9·D_o³ FLOPs a block.
    """
    values, vectors = [], []
    for block in covariance:
        found, basis = (_in_float32(block) if fast else None) or torch.linalg.eigh(block)
        # A covariance has no negative eigenvalue; what rounding makes of zero is not curvature.
        values.append(found.double().clamp_(min=0.0))
        vectors.append(basis)
    return torch.cat(values), Basis(tuple(vectors))


_LARGEST_ERROR = 1e-4
_PROBES = 16


def _in_float32(block: Tensor) -> tuple[Tensor, Tensor] | None:
    """The decomposition in float32; None if A Q - Q diag(λ) or QᵀQ - I is not small.

    Both are applied to random vectors, which no error of size escapes and which costs 1/D of
    forming them: as much as half of the decomposition.
    """
    single = block.float()
    try:
        values, q = torch.linalg.eigh(single)
    except RuntimeError:  # torch.linalg.LinAlgError: it did not converge
        return None
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(len(q), _PROBES, generator=draw).to(q)
    turned = q @ x
    residual = single @ turned - q @ (values.unsqueeze(1) * x)
    # Of length sqrt(D), x is turned by Q into as long a vector; A stretches it by ‖A‖ at most.
    error = residual.norm() / (single.norm() * math.sqrt(_PROBES)).clamp(min=1e-30)
    skew = (q.T @ turned - x).abs().max()
    return (values, q) if bool(error < _LARGEST_ERROR and skew < _LARGEST_ERROR) else None
