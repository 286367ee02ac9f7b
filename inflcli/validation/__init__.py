"""How good influence estimates are: estimators, and ground truths to hold them against.

A `Problem` says what is estimated: the influence of N training points on the log-probabilities of
K queries, in a network of linear modules. Everything here takes a problem and gives a `Result` with
scores [K, N] that mean the same (Eqs. 24, 25): the first-order effect of adding the point.

`estimators` has what is held to account, `exact` the damped Gauss-Newton solve to any precision,
`pbrf` the proximal Bregman response function (Eq. 7), which uses no curvature but to be faster, and
`correlation` says how well two of them agree. `retraining`, `bank`, `lds` and `removal` train the
network again without some of its points.

>>> import torch
>>> from torch import nn
>>> from inflcli.ekfac import Gaussian, LinearModel
>>> from inflcli.validation import Problem, SpectralWhitening, correlation, ekfac, ggn
>>> from inflcli.validation import gradient_dot, pbrf
>>> _ = torch.manual_seed(0)
>>> network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).eval()
>>> fitted = [(torch.randn(40, 3), torch.randn(40, 1))]
>>> queries = (torch.randn(2, 3), torch.randn(2, 1))
>>> problem = Problem(LinearModel(network, Gaussian()), fitted, fitted, queries)
>>> estimate = ekfac(problem)
>>> damping = estimate.details["damping"]       # λ of every module, for all alike
>>> truth = ggn(problem, damping=damping)
>>> truth.details["converged"], truth.scores.shape
(True, torch.Size([2, 40]))
>>> near, far = (correlation(one.scores, truth.scores) for one in (estimate, gradient_dot(problem)))
>>> near.summary()["pearson_mean"] > far.summary()["pearson_mean"]
True

The response function minimises twice for every point. For a small network the leading eigenvectors
of G make that quick, here all 40 of them; no more than time depends on them:

>>> whitening = SpectralWhitening(problem, damping, rank=40)
>>> response = pbrf(problem, damping=damping, whitening=whitening)
>>> min(correlation(truth.scores, response.scores).pearson) > 0.999
True
"""

from inflcli.validation.correlation import Correlation, correlation
from inflcli.validation.estimators import (
    ekfac,
    gradient_cosine,
    gradient_dot,
    lissa,
    refined,
    sampled_cg,
)
from inflcli.validation.exact import ggn
from inflcli.validation.pbrf import pbrf
from inflcli.validation.problem import Damping, Problem, Result
from inflcli.validation.whitening import SpectralWhitening

__all__ = [
    "Correlation",
    "Damping",
    "Problem",
    "Result",
    "SpectralWhitening",
    "correlation",
    "ekfac",
    "ggn",
    "gradient_cosine",
    "gradient_dot",
    "lissa",
    "pbrf",
    "refined",
    "sampled_cg",
]
