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

`linear` and `fitting` put them together for a network in memory, whatever its likelihood;
`gauss_newton` has exact products with the Gauss-Newton Hessian, and `solve` what can be solved by
them.

A regression, whose targets have a Gaussian likelihood. In a network in evaluation mode every
nn.Linear is tracked, its bias as the last column; batches are pairs of inputs and targets:

>>> import torch
>>> from torch import nn
>>> from inflcli.ekfac import Categorical, Gaussian, LinearModel, fit, influences
>>> _ = torch.manual_seed(0)
>>> network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
>>> model = LinearModel(network, Gaussian(variance=1.0))
>>> [(module.name, module.outputs, module.inputs) for module in model.modules]
[('0', 8, 5), ('2', 1, 9)]
>>> inputs, targets = torch.randn(60, 4), torch.randn(60, 1)
>>> batches = list(zip(inputs.split(20), targets.split(20)))
>>> inverse = fit(model, batches).inverse(damping_factor=0.1)
>>> measured = (torch.randn(2, 4), torch.randn(2, 1))
>>> queries = inverse.solve(model.gradients(measured))
>>> queries["0"].shape                          # (G + λI)⁻¹ ∇ log p, [Q, P, M]
torch.Size([2, 8, 5])
>>> influences(model, queries, batches).shape   # of every example, [Q, N]
torch.Size([2, 60])
>>> bool((influences(model, queries, [measured]).diagonal() > 0).all())  # of itself
True

A classifier, whose outputs are logits and whose targets are classes, int64. Here K-FAC's own
eigenvalues are taken, with one λ for all modules:

>>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
>>> model = LinearModel(network, Categorical())
>>> batches = [(inputs, torch.randint(3, (60,)))]
>>> inverse = fit(model, batches).inverse("kfac", damping=0.01)
>>> inverse.damping
{'0': 0.01, '2': 0.01}
>>> measured = (torch.randn(2, 4), torch.tensor([0, 2]))
>>> influences(model, inverse.solve(model.gradients(measured)), batches).shape
torch.Size([2, 60])

A causal language model of transformers is one, too, with `forward=lambda network, ids:
network(ids).logits` and as targets [B, T] the next tokens, `IGNORED` where there is none.
"""

from inflcli.ekfac.allocation import allocate
from inflcli.ekfac.corrected import Corrected, CorrectedSum, mean_corrected
from inflcli.ekfac.covariance import CovarianceSum, mean_covariance
from inflcli.ekfac.damping import held_out_damping
from inflcli.ekfac.eigenbasis import Basis, decompose, decompose_all
from inflcli.ekfac.fitting import Curvature, Inverse, fit
from inflcli.ekfac.gauss_newton import GaussNewton, gauss_newton_sum
from inflcli.ekfac.inverse import DampedInverse, damping_value, kfac_eigenvalues, precondition
from inflcli.ekfac.likelihood import IGNORED, Categorical, Gaussian, Likelihood
from inflcli.ekfac.linear import LinearModel, influences
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
