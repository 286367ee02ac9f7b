"""The damped inverse curvature, applied in the eigenbasis (Eq. 21)."""

from __future__ import annotations

import torch
from torch import Tensor

from inflcli.ekfac.eigenbasis import Basis


def kfac_eigenvalues(values_s: Tensor, values_a: Tensor, mean_tokens: float) -> Tensor:
    """Λ of plain K-FAC, T̄ · λ_S λ_Aᵀ [P, M]: a sequence's tokens taken as independent."""
    return mean_tokens * torch.outer(values_s, values_a)


def damping_value(eigenvalues: Tensor, factor: float | None, absolute: float | None) -> float:
    """λ of one module: `absolute`, or `factor` times the mean of Λ."""
    if absolute is not None:
        return absolute
    return (factor or 0.0) * float(eigenvalues.double().mean())


def precondition(
    rotated: Tensor, eigenvalues: Tensor, damping: float, basis_a: Basis, basis_s: Basis
) -> Tensor:
    """Q_S [ rotated / (Λ + λ) ] Q_Aᵀ for `rotated` = Q_Sᵀ V Q_A [..., P, M].

    Cost: P M (P + M) MACs a matrix.
    """
    return rotate_out(rotated / (eigenvalues + damping), basis_a, basis_s)


def rotate_in(v: Tensor, basis_a: Basis, basis_s: Basis) -> Tensor:
    """Q_Sᵀ V Q_A for V [..., P, M]."""
    return basis_s.into(basis_a.into(v).mT).mT


def rotate_out(rotated: Tensor, basis_a: Basis, basis_s: Basis) -> Tensor:
    """Q_S R Q_Aᵀ for R [..., P, M]: the inverse of `rotate_in`."""
    return basis_s.out_of(basis_a.out_of(rotated).mT).mT
