"""One pair of bases for all queries of a module: a small DW, whatever the number of queries.

V_q ≈ U C_q Wᵀ with U [P, k], W [M, k'] orthonormal and a core C_q [k, k'] a query:

    s[b, q] = sum over t of (g[b, t] U) C_q (a[b, t] W)ᵀ

Exact when U and W span all queries. Preconditioning whitens the queries, so unrelated ones share
little: this is for families of related queries, and never chosen unasked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inflcli.influence.dense import DenseQueries, ExpandedQueries
from inflcli.influence.factored import FactoredQueries
from inflcli.influence.rows import as_rows


@dataclass(frozen=True)
class SharedQueries:
    """`left` U [P, k], `right` W [M, k'], and the cores as queries of a module of that size."""

    left: Tensor
    right: Tensor
    cores: DenseQueries
    kept: float
    """Share of the queries' squared norm within the bases."""

    def sequence_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, Q]. Cost: P k + M k' + k k' MACs a token, Q k k' a sequence."""
        return self.cores.sequence_scores(_in_basis(a, self.right), _in_basis(g, self.left))

    def token_scores(self, a: Tensor, g: Tensor) -> Tensor:
        """[B, T, Q]. Cost: P k + M k' + Q k k' MACs a token."""
        return self.cores.token_scores(_in_basis(a, self.right), _in_basis(g, self.left))


def _in_basis(rows: Tensor, basis: Tensor) -> Tensor:
    found = as_rows(rows, basis.dtype) @ basis
    return found[: rows.shape[:2].numel()].to(rows.dtype).unflatten(0, rows.shape[:2])


def share(queries: FactoredQueries, keep: float) -> SharedQueries:
    """The smallest bases that each keep the share `keep` of the queries' squared norm.

    U are the leading eigenvectors of sum_q V_q V_qᵀ, W those of sum_q V_qᵀ V_q, in float64.
    Cost: K² (M + P) MACs and two eigendecompositions, once.
    """
    left, right = queries.left.double(), queries.right.double()
    mine = queries.owner.unsqueeze(0) == queries.owner.unsqueeze(1)
    # V_q V_qᵀ = L_q (R_qᵀ R_q) L_qᵀ: the Gram matrices of different queries do not mix.
    outer = left @ ((right.T @ right) * mine) @ left.T
    inner = right @ ((left.T @ left) * mine) @ right.T
    u, w = _leading(outer, keep), _leading(inner, keep)
    element = queries.left.dtype
    projected = FactoredQueries(u.T @ left, w.T @ right, queries.owner, queries.count)
    small = ExpandedQueries.of(projected).dense()
    total = float(torch.trace(outer))
    kept = float(small.matrices.square().sum()) / total if total > 0 else 1.0
    return SharedQueries(
        u.to(element), w.to(element), DenseQueries(small.matrices.to(element)), kept
    )


def _leading(moment: Tensor, keep: float) -> Tensor:
    """Eigenvectors [D, k] of the largest eigenvalues that make up the share `keep` of the trace."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.clamp(min=0.0).flip(0), vectors.flip(1)
    reached = values.cumsum(0) >= keep * values.sum()
    size = int(reached.to(torch.uint8).argmax()) + 1 if bool(reached.any()) else len(values)
    return vectors[:, :size]
