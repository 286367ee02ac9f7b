"""EK-FAC as pure tensor functions: no I/O, no distributed calls.

For a linear module with inputs a [M] (bias column included) and output gradients g [P], the
curvature of one sequence's gradient DW = sum_t g_t a_tᵀ [P, M] is approximated in four steps, one
module each:

1. `covariance`: A = E[a aᵀ], S = E[g gᵀ] over tokens
2. `eigenbasis`: A = Q_A diag(λ_A) Q_Aᵀ, S = Q_S diag(λ_S) Q_Sᵀ
3. `corrected`:  Λ = E[(Q_Sᵀ DW Q_A)²] over sequences
4. `inverse`:    (G + λI)⁻¹ V = Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ

`lowrank` finds the leading components of a preconditioned query, and `allocation` says how many of
them to keep in each module. Works for any model of linear modules: nothing here knows about
language models.
"""

from inflcli.ekfac.allocation import allocate
from inflcli.ekfac.corrected import CorrectedSum, mean_corrected
from inflcli.ekfac.covariance import CovarianceSum, mean_covariance
from inflcli.ekfac.eigenbasis import Basis, decompose, decompose_all
from inflcli.ekfac.inverse import DampedInverse, damping_value, kfac_eigenvalues, precondition
from inflcli.ekfac.lowrank import LowRank, energy, truncate

__all__ = [
    "Basis",
    "CorrectedSum",
    "CovarianceSum",
    "DampedInverse",
    "LowRank",
    "allocate",
    "damping_value",
    "decompose",
    "decompose_all",
    "energy",
    "kfac_eigenvalues",
    "mean_corrected",
    "mean_covariance",
    "precondition",
    "truncate",
]
