"""Corrected eigenvalues: the second moment of sequence gradients in the eigenbasis (Eq. 20).

Axes: a [B, T, M], g [B, T, P], DW [P, M].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inflcli.ekfac.eigenbasis import Basis

_CACHED = 1 << 20
"""Numbers of Λ worked on at once."""


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

        `lengths` [B] are the positions of each sequence that may hold a gradient. Products are
        taken in the bases' type, and summed in that of the total. Cost a sequence:
        T(M² + P² + MP) rotating first, TMP + MP(M + P) rotating the gradient; the cheaper one.
        """
        a, g = a.to(basis_a.dtype), g.to(basis_s.dtype)
        if rotate_first(sum(lengths) / len(lengths), *self.total.shape):
            self._add_rotated(basis_a.into(a), basis_s.into(g), lengths)
        else:
            for row, length in enumerate(lengths):
                gradient = g[row, :length].T @ a[row, :length]
                self._add_squares(self.total, basis_s.into(basis_a.into(gradient).T).T)
        self.count += len(lengths)

    def _add_rotated(self, a: Tensor, g: Tensor, lengths: list[int]) -> None:
        # Some rows of Λ at a time and one sequence after the other: sums and products stay in
        # cache, and no [P, M], let alone [B, P, M], is made.
        step = max(1, _CACHED // self.total.shape[1])
        for first in range(0, len(self.total), step):
            rows = slice(first, first + step)
            for row, length in enumerate(lengths):
                gradient = g[row, :length, rows].T @ a[row, :length]
                self._add_squares(self.total[rows], gradient)

    @staticmethod
    def _add_squares(total: Tensor, gradient: Tensor) -> None:
        gradient = gradient.to(total.dtype)
        total.addcmul_(gradient, gradient)

    def move(self, device: torch.device) -> None:
        self.total = self.total.to(device)

    def doubled(self, device: torch.device) -> CorrectedSum:
        """A copy in float64."""
        return CorrectedSum(self.total.to(device, torch.float64, copy=True), self.count)

    def join(self, other: CorrectedSum) -> None:
        """Add another's sequences."""
        self.total += other.total.to(self.total.device)
        self.count += other.count

    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)
