"""The damped inverse curvature, applied in the eigenbasis (Eq. 21).

Axes: a [n, T, M], g [n, T, P], V [n, P, M].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inflcli.ekfac.corrected import rotate_first
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


@dataclass(frozen=True)
class DampedInverse:
    """(G + λI)⁻¹ of one module: Q_A and Q_S, and Λ + λ [P, M]; None for the identity."""

    bases: tuple[Basis, Basis] | None
    divisor: Tensor | None
    damping: float

    def gradients(self, a: Tensor, g: Tensor) -> RotatedGradients:
        """The gradients gᵀ a, to be formed later, in the bases' type.

        Cost: T (M² + P²) MACs each if rotated here.
        """
        if self.bases is None:
            return RotatedGradients(self, a, g, rotated=True)
        if not rotate_first(a.shape[1], g.shape[2], a.shape[2]):
            element = self.bases[0].dtype
            return RotatedGradients(self, a.to(element), g.to(element), rotated=False)
        return RotatedGradients(self, self.bases[0].into(a), self.bases[1].into(g), rotated=True)

    def solve(self, v: Tensor) -> Tensor:
        """(G + λI)⁻¹ V of V [..., P, M] in the model's coordinates.

        Cost: 2 P M (P + M) MACs a matrix.
        """
        if self.bases is None or self.divisor is None:
            return v
        return rotate_out(rotate_in(v, *self.bases) / self.divisor, *self.bases)

    def rotate_back(self, v: Tensor) -> Tensor:
        """V in the model's coordinates, [..., P, M]. Cost: P M (P + M) MACs a matrix."""
        return v if self.bases is None else rotate_out(v, *self.bases)

    def rotate_factors_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """left [P, K] and right [M, K] in the model's coordinates, in the bases' type.

        Cost: K (M² + P²) MACs.

        Rotations are orthogonal: a truncation in the eigenbasis is the same one outside of it.
        """
        if self.bases is None:
            return left, right
        basis_a, basis_s = self.bases
        return basis_s.out_of(left.mT).mT, basis_a.out_of(right.mT).mT


class Preconditioned(Protocol):
    """n matrices V = (G + λI)⁻¹ DW of one module, to be formed a few at a time in whatever
    orthogonal basis they come in."""

    @property
    def count(self) -> int: ...

    @property
    def like(self) -> Tensor:
        """A tensor of their type, on their device."""

    def preconditioned(self, rows: list[int]) -> Tensor:
        """Some of them in that basis, [len(rows), P, M], to do with as one likes."""

    def rotate_back(self, v: Tensor) -> Tensor:
        """V [..., P, M] in the model's coordinates."""

    def rotate_factors_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """left [P, K] and right [M, K] in the model's coordinates."""


@dataclass(frozen=True)
class GivenMatrices:
    """V [n, P, M] as it is, in the model's coordinates."""

    v: Tensor

    @property
    def count(self) -> int:
        return len(self.v)

    @property
    def like(self) -> Tensor:
        return self.v

    def preconditioned(self, rows: list[int]) -> Tensor:
        return self.v[rows]

    def rotate_back(self, v: Tensor) -> Tensor:
        return v

    def rotate_factors_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left, right


@dataclass(frozen=True)
class RotatedGradients:
    """n gradients as the a and g that they are formed from, in the eigenbasis if `rotated`."""

    inverse: DampedInverse
    a: Tensor
    g: Tensor
    rotated: bool

    @property
    def count(self) -> int:
        return len(self.a)

    @property
    def like(self) -> Tensor:
        return self.a

    def rotate_back(self, v: Tensor) -> Tensor:
        return self.inverse.rotate_back(v)

    def rotate_factors_back(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse.rotate_factors_back(left, right)

    def preconditioned(self, rows: list[int]) -> Tensor:
        """(Q_Sᵀ gᵀa Q_A) / (Λ + λ) of some of them, [len(rows), P, M].

        Cost: T P M MACs each, and P M (P + M) where the rotation is yet to come.
        """
        v = self.g[rows].mT @ self.a[rows]
        if not self.rotated and self.inverse.bases is not None:
            v = rotate_in(v, *self.inverse.bases)
        return v if self.inverse.divisor is None else v.div_(self.inverse.divisor)
