"""EK-FAC as pure tensor functions: no I/O, no distributed calls.

For a linear module with inputs a [M] (bias column included) and output gradients g [P], the
curvature of one sequence's gradient DW = sum_t g_t a_tᵀ [P, M] is approximated in four steps, one
module each:

1. `covariance`: A = E[a aᵀ], S = E[g gᵀ] over tokens
2. `eigenbasis`: A = Q_A diag(λ_A) Q_Aᵀ, S = Q_S diag(λ_S) Q_Sᵀ
3. `corrected`:  Λ = E[(Q_Sᵀ DW Q_A)²] over sequences
4. `inverse`:    (G + λI)⁻¹ V = Q_S [(Q_Sᵀ V Q_A) / (Λ + λ)] Q_Aᵀ

`sequences` has what takes the place of step 1 where the bases are those of sequence gradients,
E[DWᵀ DW] and E[DW DWᵀ] (EC-Shampoo).

`damping` chooses λ by what one half of the data makes of the other's gradients, `lowrank` finds the
leading components of a preconditioned query, and `allocation` says how many of them to keep in each
module. Works for any model of linear modules: nothing here knows about language models.

`linear` puts them together for a network in memory, whatever its likelihood; `gauss_newton` has
exact products with the Gauss-Newton Hessian, and `solve` what can be solved by them.
"""

from inflcli.ekfac.allocation import allocate
from inflcli.ekfac.corrected import Corrected, CorrectedSum, mean_corrected
from inflcli.ekfac.covariance import CovarianceSum, mean_covariance
from inflcli.ekfac.damping import held_out_damping
from inflcli.ekfac.eigenbasis import Basis, decompose, decompose_all
from inflcli.ekfac.gauss_newton import GaussNewton, gauss_newton_sum
from inflcli.ekfac.inverse import DampedInverse, damping_value, kfac_eigenvalues, precondition
from inflcli.ekfac.likelihood import IGNORED, Categorical, Gaussian, Likelihood
from inflcli.ekfac.linear import Curvature, Inverse, LinearModel, fit, influences
from inflcli.ekfac.lowrank import LowRank, energy, truncate
from inflcli.ekfac.sequences import add_sequences
from inflcli.ekfac.solve import Solution, conjugate_gradient, damped, lissa, neumann

__all__ = [
    "IGNORED",
    "Basis",
    "Categorical",
    "Corrected",
    "CorrectedSum",
    "CovarianceSum",
    "Curvature",
    "DampedInverse",
    "GaussNewton",
    "Gaussian",
    "Inverse",
    "Likelihood",
    "LinearModel",
    "LowRank",
    "Solution",
    "add_sequences",
    "allocate",
    "conjugate_gradient",
    "damped",
    "damping_value",
    "decompose",
    "decompose_all",
    "energy",
    "fit",
    "gauss_newton_sum",
    "held_out_damping",
    "influences",
    "kfac_eigenvalues",
    "lissa",
    "mean_corrected",
    "mean_covariance",
    "neumann",
    "precondition",
    "truncate",
]
