"""Corrected eigenvalues: the second moment of sequence gradients in the eigenbasis (Eq. 20).

Axes: a [B, T, M], g [B, T, P], DW [P, M].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inflcli.ekfac.eigenbasis import Basis


def rotate_first(tokens: float, outputs: int, inputs: int) -> bool:
    """Whether rotating a and g is cheaper than rotating DW: T(M² + P²) < MP(M + P)."""
    return tokens * (inputs**2 + outputs**2) < inputs * outputs * (inputs + outputs)


@dataclass
class CorrectedSum:
    """Running sum of (Q_Sᵀ DW Q_A)² over `count` sequences, [P, M]."""

    total: Tensor
    count: int = 0

    @classmethod
    def zeros(
        cls, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
    ) -> CorrectedSum:
        return cls(torch.zeros(outputs, inputs, dtype=dtype, device=device))

    def add(self, a: Tensor, g: Tensor, lengths: list[int], basis_a: Basis, basis_s: Basis) -> None:
        """Add every sequence of a batch; g is zero where nothing is predicted.

        `lengths` [B] are the positions of each sequence that may hold a gradient. Cost a sequence:
        T(M² + P² + MP) rotating first, TMP + MP(M + P) rotating the gradient; the cheaper one.
        """
        a, g = a.to(self.total.dtype), g.to(self.total.dtype)
        first = rotate_first(sum(lengths) / len(lengths), *self.total.shape)
        if first:
            a, g = basis_a.into(a), basis_s.into(g)
        # One sequence at a time: [P, M] stays in cache and no [B, P, M] is held.
        for row, length in enumerate(lengths):
            gradient = g[row, :length].T @ a[row, :length]
            if not first:
                gradient = basis_s.into(basis_a.into(gradient).T).T
            self.total.addcmul_(gradient, gradient)
        self.count += len(lengths)

    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)
