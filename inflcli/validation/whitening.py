"""Coordinates in which a damped Gauss-Newton Hessian is near the identity.

A whitening is a linear map W from u [D] to matrices [P, M] a module with W Wᵀ ≈ (G + λI)⁻¹. A
minimiser that works on u instead of the weights needs few steps, and so do conjugate gradients that
are preconditioned by W Wᵀ; what they find is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from inflcli.ekfac import Inverse
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.inverse import rotate_in, rotate_out
from inflcli.validation.problem import ROWS, Damping, Problem, by_module, capped_product


class Whitening(Protocol):
    """W and its transpose."""

    @property
    def size(self) -> int:
        """D, the tracked parameters."""

    def step(self, u: Tensor) -> Matrices:
        """W u of u [K, D]: [K, P, M] by module."""

    def pull(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Wᵀ v of [K, P, M] by module: [K, D]."""


class KroneckerWhitening:
    """By EK-FAC: W u = Q_S [u / sqrt(Λ + λ)] Q_Aᵀ. Cost: P M (P + M) MACs a module either way.

    Raises ValueError where the inverse is the identity.
    """

    def __init__(self, inverse: Inverse) -> None:
        self._bases, self._root = {}, {}
        for name, one in inverse.modules.items():
            if one.bases is None or one.divisor is None:
                raise ValueError("the identity's coordinates are not whitened")
            self._bases[name], self._root[name] = one.bases, one.divisor.sqrt()
        self.size = sum(root.numel() for root in self._root.values())

    def step(self, u: Tensor) -> Matrices:
        parts = u.split([root.numel() for root in self._root.values()], 1)
        return {
            name: rotate_out(part.reshape(-1, *root.shape) / root, *self._bases[name])
            for (name, root), part in zip(self._root.items(), parts, strict=True)
        }

    def pull(self, gradients: Mapping[str, Tensor]) -> Tensor:
        rotated = [
            (rotate_in(gradients[name], *self._bases[name]) / root).flatten(1)
            for name, root in self._root.items()
        ]
        return torch.cat(rotated, 1)


class SpectralWhitening:
    """By the leading eigenvectors V of K = λ^-½ G λ^-½: W u = λ^-½ (u + V [(1 + μ)^-½ - 1] Vᵀ u).

    `rank` of them, by a randomised range and Rayleigh-Ritz. W Wᵀ is (G + λI)⁻¹ itself where `rank`
    is that of G or more, which is at most the fitted positions times the outputs. For small
    networks: memory and cost are `rank` vectors of D numbers, either way, and 2 `rank`
    Gauss-Newton products and 2 `rank`² D MACs to begin with. It is in float64 always.
    Raises ValueError where a λ is not positive.
    """

    def __init__(self, problem: Problem, damping: Damping, rank: int, rows: int = ROWS) -> None:
        problem, added = problem.in_float64(), by_module(problem.model, damping)
        if min(added.values()) <= 0:
            raise ValueError("an undamped curvature cannot be whitened")
        modules, device = problem.model.modules, problem.model.device
        self._shapes = {module.name: (module.outputs, module.inputs) for module in modules}
        self.size = sum(outputs * inputs for outputs, inputs in self._shapes.values())
        self._root = {name: added[name] ** -0.5 for name in self._shapes}
        product = capped_product(problem.model, problem.fitted, rows)

        def curved(vectors: Tensor) -> Tensor:
            return self._pulled(product(self._scaled(vectors)))

        generator = torch.Generator().manual_seed(0)
        start = torch.randn(min(rank, self.size), self.size, generator=generator)
        found = curved(start.to(device, problem.model.dtype))
        basis = torch.linalg.qr(found.T)[0].T
        values, turn = torch.linalg.eigh(basis @ curved(basis).T)
        self._vectors = turn.T @ basis
        self._shrink = (1 + values.clamp(min=0.0)).rsqrt() - 1

    def step(self, u: Tensor) -> Matrices:
        return self._scaled(self._shrunk(u))

    def pull(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return self._shrunk(self._pulled(gradients))

    def _shrunk(self, rows: Tensor) -> Tensor:
        return rows + ((rows @ self._vectors.T) * self._shrink) @ self._vectors

    def _scaled(self, rows: Tensor) -> Matrices:
        parts = rows.split([outputs * inputs for outputs, inputs in self._shapes.values()], 1)
        return {
            name: self._root[name] * part.reshape(-1, *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _pulled(self, matrices: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._root[name] * matrices[name].flatten(1) for name in self._shapes], 1)
