"""Low-rank factors of preconditioned queries (section 3.2.2 of the paper).

Axes: V [n, P, M], a stack of matrices of one shape; left [n, P, r], right [n, M, r].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ITERATIONS = 3
_SHIFT = 1e-13
_TINY = torch.finfo(torch.float64).tiny
_EXACT_UP_TO = 128
_EXACT_FLOAT64_UP_TO = 1024


@dataclass(frozen=True)
class LowRank:
    """V ≈ left rightᵀ: the leading singular triples, with orthonormal vectors on the shorter side
    and the singular values in the factor of the longer one.

    `energies` [n, r] are the squared singular values in float64, descending, so that any first
    few columns are the best approximation of their rank.
    """

    left: Tensor
    right: Tensor
    energies: Tensor

    def __getitem__(self, index: int) -> LowRank:
        """One matrix's factors: left [P, r], right [M, r], energies [r]."""
        return LowRank(self.left[index], self.right[index], self.energies[index])


def energy(v: Tensor) -> Tensor:
    """‖V‖² of every matrix, [n] float64."""
    # The rows' norms may round in float32: their errors do not add up.
    single = torch.promote_types(v.dtype, torch.float32)
    return torch.linalg.vector_norm(v, dim=-1, dtype=single).double().square().sum(-1)


def truncate(v: Tensor, rank: int, *, single: bool = False) -> LowRank:
    """The leading min(rank, P, M) components of every V.

    Exact (the eigenvectors of the smaller Gram matrix in float64) where that is cheap or precision
    is asked for: a short side D of up to 128, in float64 of up to 1,024, or one that the search
    would span whole. Otherwise a randomised block Krylov search with oversampling, whose energies
    are a little low and whose start depends on nothing but the shape. bfloat16 is multiplied as
    such, decomposed in float32, and factored into float32; all else is decomposed in float64, but
    for float32 with `single`.
    Raises torch.linalg.LinAlgError for what is not finite. Cost a matrix: exact D P M + about
    9 D³, else about (3.2 rank + 96) P M MACs.
    """
    rank = min(rank, *v.shape[-2:])
    wide = v if v.shape[-2] <= v.shape[-1] else v.mT
    if is_exact(wide.shape[-2], rank, wide.dtype):
        short, long, energies = _exact(wide, rank)
    else:
        # bfloat16 leaves nothing that float64 would keep.
        coarse = wide.dtype == torch.bfloat16 or (single and wide.dtype == torch.float32)
        short, long, energies = _randomised(wide, rank, torch.float32 if coarse else torch.float64)
    left, right = (short, long) if wide is v else (long, short)
    return LowRank(left, right, energies)


def is_exact(short: int, rank: int, dtype: torch.dtype) -> bool:
    """Whether matrices with a short side of that size are truncated exactly."""
    limit = _EXACT_FLOAT64_UP_TO if dtype == torch.float64 else _EXACT_UP_TO
    return short <= limit or (1 + _ITERATIONS) * _width(rank) >= short


def _exact(wide: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    exact = wide.double()
    values, vectors = torch.linalg.eigh(exact @ exact.mT)
    u = vectors[..., -rank:].flip(-1)
    energies = values[..., -rank:].flip(-1).clamp(min=0.0)
    work = torch.promote_types(wide.dtype, torch.float32)
    return u.to(work), (exact.mT @ u).to(work), energies


def _randomised(wide: Tensor, rank: int, work: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`work` is what the rows of the search are decomposed in."""
    # A generator of its own: the answer does not depend on what ran before, nor on the device.
    width, draw = _width(rank), torch.Generator().manual_seed(0)
    start = torch.randn(wide.shape[-1], width, generator=draw).to(wide)
    found = wide @ start
    basis = found[..., :0].double()
    rows: list[Tensor] = []
    for _ in range(1 + _ITERATIONS):
        block = _orthonormal(found.double(), basis)
        basis = torch.cat([basis, block], -1)
        rows.append(block.to(wide.dtype).mT @ wide)
        if len(rows) <= _ITERATIONS:
            found = wide @ _unit(rows[-1])[0].mT
    # The blocks are orthonormal together, so that their rows are all of basisᵀ V.
    back, scale = _unit(torch.cat(rows, -2).to(work))
    values, vectors = torch.linalg.eigh(back @ back.mT)
    turn = vectors[..., -rank:].flip(-1)
    energies = values[..., -rank:].flip(-1).clamp(min=0.0).double()
    right = (back.mT @ turn).mul_(scale)
    kind = torch.promote_types(wide.dtype, torch.float32)
    left = basis.to(work) @ turn
    return left.to(kind), right.to(kind), energies * scale.double().square().squeeze(-1)


def _unit(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Each matrix over its largest number, and that: squares of V may leave float32's range."""
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    largest = largest.clamp(min=torch.finfo(matrix.dtype).tiny)
    return matrix / largest, largest


def _width(rank: int) -> int:
    """Columns of a block. Four of them hold about twice the rank: measured, that finds more energy
    than fewer and wider blocks at the same cost, and narrower ones wait for memory."""
    return math.ceil(0.4 * rank) + 12


def _orthonormal(columns: Tensor, before: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span outside that of `before`, in float64.

    By Cholesky of the Gram matrix, shifted: the faintest directions are rounding errors and make
    it singular. A second pass mends the shift, and what the first left of `before`. Householder
    would need no shift, but takes one matrix at a time on all threads.
    """
    for _ in range(2):
        columns = columns - before @ (before.mT @ columns)
        gram = columns.mT @ columns
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal += (_SHIFT * diagonal.sum(-1, keepdim=True)).clamp(min=_TINY)
        factor = torch.linalg.cholesky(gram)
        columns = torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
    return columns
