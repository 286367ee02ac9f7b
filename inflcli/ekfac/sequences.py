"""Second moments of sequence gradients, E[DWᵀ DW] and E[DW DWᵀ] (EC-Shampoo).

Their eigenvectors take the place of those of A and S. A sequence's tokens are summed before they
are squared, as in Λ, so that correlations between its tokens count. Axes: a [B, T, M], g [B, T, P],
DW = gᵀ a [P, M] of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from inflcli.ekfac.cost import through_gram
from inflcli.ekfac.covariance import CovarianceSum


def add_sequences(
    sum_a: CovarianceSum,
    sum_s: CovarianceSum,
    a: Tensor,
    g: Tensor,
    lengths: Sequence[int],
    room: int | None = None,
) -> None:
    """Add every sequence's DWᵀ DW to `sum_a` and its DW DWᵀ to `sum_s`.

    g is zero where nothing is predicted; `lengths` [B] are the positions of each sequence that may
    hold a gradient. Products are taken and summed in the sums' type. Cost a sequence:
    T M P + P M² + M P² MACs where DW is formed, or through the Gram matrices a aᵀ and g gᵀ [T, T]
    2 T² (M + P) + T (M² + P²), the cheaper one; squares count towards half for wide blocks.
    `room` is for how many rows the products of the second way are made, at least as many as the
    lengths add up to; the rest is zero.
    """
    kind = sum_a.blocks[0].dtype
    a, g = a.to(kind), g.to(kind)
    blocks = max(len(sum_a.blocks), len(sum_s.blocks))
    tokens = sum(lengths) / len(lengths)
    if through_gram(tokens, g.shape[-1], a.shape[-1], blocks):
        room = room or sum(lengths)
        _add_through_gram(sum_a, a, g, lengths, room)
        _add_through_gram(sum_s, g, a, lengths, room)
        return
    for row, length in enumerate(lengths):
        gradient = g[row, :length].T @ a[row, :length]
        sum_a.add(gradient, sequences=1)
        sum_s.add(gradient.T, sequences=1)


def _add_through_gram(
    total: CovarianceSum, x: Tensor, y: Tensor, lengths: Sequence[int], room: int
) -> None:
    """Add xᵀ (y yᵀ) x of every sequence: of all together, so that the sum is read once."""
    rows, weighted = (x.new_zeros(room, x.shape[-1]) for _ in range(2))
    first = 0
    for row, length in enumerate(lengths):
        part = slice(first, first + length)
        rows[part], other = x[row, :length], y[row, :length]
        weighted[part] = (other @ other.T) @ rows[part]
        first += length
    total.add(rows, sequences=len(lengths), weighted=weighted)
