"""Low-rank factors of a preconditioned query (section 3.2.2 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT_UP_TO = 1024
_OVERSAMPLE = 8


def truncate(v: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best rank-r approximation L Rᵀ of V [P, M], and the share of ‖V‖² that it keeps.

    Returns L [P, r], R [M, r]. Exact where min(P, M) is at most 1,024: the eigenvectors U of the
    smaller Gram matrix in float64, then V ≈ U Uᵀ V, which costs a fraction of an SVD. Wider
    matrices take a randomised SVD with oversampling and two power iterations.
    """
    rank = min(rank, *v.shape)
    left, right = (_randomised if min(v.shape) > _EXACT_UP_TO else _by_gram)(v, rank)
    total = v.double().square().sum()
    return left, right, float(_energy(left, right) / total) if total > 0 else 1.0


def _randomised(v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    # A generator of its own would be better, but svd_lowrank takes none: fork the global one, so
    # that the answer does not depend on what ran before.
    with torch.random.fork_rng(devices=[v.device] if v.is_cuda else []):
        torch.manual_seed(0)
        u, s, w = torch.svd_lowrank(v, q=min(rank + _OVERSAMPLE, *v.shape), niter=2)
    return u[:, :rank] * s[:rank], w[:, :rank]


def _by_gram(v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    exact = v.double()
    if v.shape[0] <= v.shape[1]:
        u = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:].flip(-1)
        return u.to(v.dtype), (exact.T @ u).to(v.dtype)
    w = torch.linalg.eigh(exact.T @ exact).eigenvectors[:, -rank:].flip(-1)
    return (exact @ w).to(v.dtype), w.to(v.dtype)


def _energy(left: Tensor, right: Tensor) -> Tensor:
    """‖L Rᵀ‖², without forming the product."""
    left, right = left.double(), right.double()
    return ((left.T @ left) * (right.T @ right)).sum()
