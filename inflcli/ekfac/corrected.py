"""Corrected eigenvalues: the second moment of sequence gradients in the eigenbasis (Eq. 20).

Axes: a [B, T, M], g [B, T, P], DW [P, M].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inflcli.ekfac.covariance import added
from inflcli.ekfac.damping import held_out_damping, strided
from inflcli.ekfac.eigenbasis import Basis

_CACHED = 1 << 20
"""Numbers of Λ worked on at once."""
_AT_ONCE = 1 << 17
"""The same in float64."""
_COMPARED = 1 << 20
_DAMPING = 0.1
_HOST = torch.device("cpu")


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

    def mean(self) -> Tensor:
        return mean_corrected([[self]], self.total.device).mean


class Corrected(NamedTuple):
    """Λ of all sequences, and what two halves of them say about it; None is not known."""

    mean: Tensor
    """Λ [P, M]."""
    agreement: float | None
    damping_factor: float | None
    """λ / mean Λ by `held_out_damping`."""


def mean_corrected(halves: Sequence[Sequence[CorrectedSum]], device: torch.device) -> Corrected:
    """Λ [P, M] over all sums, in their type; how far the halves agree; which damping they want.

    `halves` are one or two lists of sums, which are added in float64, in their order. The agreement
    is Pearson between two halves' log(Λ + λ), with λ = 0.1 · mean Λ of each: what an inverse
    Hessian-vector product divides by. Without λ it would be the noise of directions that hardly
    count. It is taken over about a million numbers, in rows throughout Λ; None of one half, or of
    nothing. The damping is chosen over rows and columns throughout Λ, 256 to 511 of each. Cost:
    reading all twice, a few rows at a time; and those of the damping 58 times.
    """
    first = halves[0][0].total
    mean = torch.empty(first.shape, dtype=first.dtype, device=device)
    counts = [sum(part.count for part in half) for half in halves]
    totals = [
        sum(float(part.total.sum(dtype=torch.float64)) for part in half) / first.numel()
        for half in halves
    ]
    # An empty half is no sequence, though its own mean is taken over one.
    whole_count = max(sum(counts), 1)
    factor = _chosen_damping(halves, counts, sum(totals) / whole_count)
    counts = [max(count, 1) for count in counts]
    moments, compared = torch.zeros(5, dtype=torch.float64, device=device), 0
    step = max(1, _AT_ONCE // first.shape[1])
    every = -(-first.numel() // _COMPARED)
    for number, row in enumerate(range(0, len(first), step)):
        rows = slice(row, row + step)
        sums = [added([part.total[rows] for part in half], device) for half in halves]
        if len(sums) == 2 and number % every == 0:
            logs = [
                ((total + _DAMPING * whole) / count).float().log_().double()
                for total, whole, count in zip(sums, totals, counts, strict=True)
            ]
            moments += _moments(*logs)
            compared += sums[0].numel()
        for more in sums[1:]:
            sums[0] += more
        mean[rows] = sums[0] / whole_count
    agreement = _pearson(compared, *moments.tolist()) if compared else None
    return Corrected(mean, agreement, factor)


def _chosen_damping(
    halves: Sequence[Sequence[CorrectedSum]], counts: Sequence[int], mean: float
) -> float | None:
    """The factor of `mean` Λ; None unless there are two halves."""
    if len(halves) < 2 or min(counts) == 0:
        return None
    some = strided(*halves[0][0].total.shape)
    # On the host, so that the choice does not depend on where the sums are.
    sums = [added([part.total[some] for part in half], _HOST) for half in halves]
    one, other = (total / count for total, count in zip(sums, counts, strict=True))
    return held_out_damping(one, other, mean)


def _moments(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def _pearson(n: int, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    spread = (xx - x * x / n) * (yy - y * y / n)
    return (xy - x * y / n) / math.sqrt(spread) if spread > 0 and math.isfinite(spread) else None
