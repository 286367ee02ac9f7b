"""Damping chosen without retraining: what one half of a fit makes of the other half's gradients.

Λ₁ and Λ₂ [P, M] are the second moments of two halves' sequence gradients, in one eigenbasis. The
damped inverse of one half turns a gradient b of the other into x = b / (Λ₁ + λ). What x is for is
to minimise ½ xᵀ G x − bᵀ x, whose minimiser is G⁻¹ b; held out, G is the other half's, diag(Λ₂).
Averaged over that half's gradients, of which E[b²] = Λ₂, a coordinate of it is

    E[ ½ Λ₂ b² / (Λ₁ + λ)² − b² / (Λ₁ + λ) ] = ½ (Λ₂ / (Λ₁ + λ) − 1)² − ½

so that the best λ on held-out gradients is the one for which Λ₁ + λ whitens them best: that which
minimises the mean over coordinates of (Λ₂ / (Λ₁ + λ) − 1)². Both halves are held out in turn, and
the two means added. Where the halves are the same, the less λ the better; where Λ₁ is all noise,
none does better than an infinite λ, for which each mean is 1.

It is the damping of a fit on half as many sequences, whose Λ has twice the variance: for the whole
fit it is rather too much than too little. The eigenvectors are those of both halves, and not held
out.
"""

from __future__ import annotations

import math

from torch import Tensor

FACTORS = tuple(10.0 ** (quarter / 4) for quarter in range(-24, 5))
"""The grid: shares of mean Λ, 10⁻⁶ to 10, four a decade."""


def held_out_loss(one: Tensor, other: Tensor, damping: float) -> float:
    """mean (Λ₂ / (Λ₁ + λ) − 1)² + mean (Λ₁ / (Λ₂ + λ) − 1)², over the coordinates given, λ > 0.

    0 if each half whitens the other's gradients, 2 for an infinite λ. In the tensors' type. Cost:
    reading both twice.
    """
    found = 0.0
    for fitted, held_out in ((one, other), (other, one)):
        ratio = held_out / (fitted + damping)
        ratio -= 1
        found += float((ratio * ratio).sum())
    return found / one.numel()


def held_out_damping(one: Tensor, other: Tensor, mean: float | None = None) -> float | None:
    """The factor f of the grid `FACTORS` for which λ = f · `mean` has the least `held_out_loss`.

    `one` and `other` are Λ of two halves, of the same shape, each a mean over its own sequences;
    `mean` is that of the whole Λ, where they are only a part of it, else that of both. Coordinates
    in which neither half has a gradient are left out: no λ whitens them. Of equals the least is
    taken; the scale of Λ does not matter. None where nothing is left, or not finite. Computed in
    float64. Cost: reading both 2 · 29 times.
    """
    one, other = one.flatten().double(), other.flatten().double()
    if mean is None:
        mean = float(one.mean() + other.mean()) / 2
    counted = (one > 0) | (other > 0)
    if not bool(counted.any()) or not 0 < mean < math.inf:
        return None
    one, other = one[counted] / mean, other[counted] / mean
    losses = [held_out_loss(one, other, factor) for factor in FACTORS]
    least = min(losses)
    return FACTORS[losses.index(least)] if math.isfinite(least) else None


def strided(rows: int, columns: int, side: int = 256) -> tuple[slice, slice]:
    """Every so manieth row and column of a matrix: `side` to 2 · `side` - 1 of each, or all.

    Over so many of a Λ, whose eigenvalues ascend, a damping is chosen about as over all.
    """

    def every(count: int) -> slice:
        step = max(1, count // side)
        return slice(step // 2, None, step)

    return every(rows), every(columns)
