"""The proximal Bregman response function (Eq. 7): influence by training on, without a curvature.

For a training point m the weights θ(ε) minimise J of `bregman`: they stay near θs in the outputs
and in the weights, while the log-probability of z_m weighs ε. The response of a query,
df(θ(ε))/dε at ε = 0, is what the score ∇fᵀ (G + λI)⁻¹ ∇log p(z_m) says to first order; it is taken
as (f(θ(ε)) - f(θ(-ε))) / 2ε, which has an error of order ε².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from inflcli.ekfac import Inverse
from inflcli.ekfac.linear import Batch
from inflcli.validation.bregman import BregmanObjective, Vector
from inflcli.validation.problem import Damping, Problem, Result, Watch, inverse_for
from inflcli.validation.whitening import KroneckerWhitening, Whitening

_REGIME = 0.01
"""ε times a self-influence, at most: the share by which a step changes the slope it follows."""


def pbrf(
    problem: Problem,
    *,
    epsilon: float | None = None,
    damping: Damping | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
    whitening: Whitening | None = None,
    tolerance: float = 1e-6,
    iterations: int = 1000,
    checked: int = 3,
) -> Result:
    """The responses of the queries' f to every point, [K, N], in float64, by scipy's L-BFGS.

    It works in coordinates that are whitened by the EK-FAC `inverse`, or by a `whitening`: for a
    small network `SpectralWhitening` needs a handful of steps instead of a hundred. A minimum is
    found when |dJ/du| is `tolerance` times that at θs, or after so many `iterations`. λ is that of
    the `inverse` (an EK-FAC fit's unless given), or `damping`. `epsilon` is one for all points;
    unless given, each has its own: 0.01 over its self-influence |Wᵀ g|² ≈ gᵀ (G + λI)⁻¹ g, g being
    its gradient for its own targets or for some drawn from the network, whichever has more. A
    smaller ε would leave less of J above rounding. What higher orders that leaves is seen by
    halving ε for `checked` points, from the one of least self-influence to that of the largest.

    details: the least and the largest ε (`epsilon`, `epsilon_largest`); the largest `gradient_norm`
    reached, relative to that at θs, and whether it is as small as was asked (`converged`);
    `evaluations` of J a point, in the mean; and `halved_change`, |r(ε) - r(ε/2)| / |r(ε)| over the
    queries, the largest of the checked points.
    Raises ValueError if ε is 0, or the inverse the identity. Cost: N times the evaluations, each a
    pass over `fitted`, forward and backward.
    """
    watch = Watch(problem.model.device, fit_seconds)
    problem = problem.in_float64()
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)
    with watch("solve"):
        if whitening is None:
            whitening = KroneckerWhitening(inverse)
        objective = BregmanObjective(problem, inverse.damping, whitening)
        generator = torch.Generator(problem.model.device).manual_seed(0)
        own = torch.cat(
            [
                torch.maximum(*(objective.self_influences(batch, g) for g in (None, generator)))
                for batch in problem.points
            ]
        )
        weights = (_REGIME / own.clamp(min=1e-300)).tolist()
        if epsilon is not None:
            weights = [epsilon] * len(own)
        if not all(weights):
            raise ValueError("epsilon is 0")
        settings = _Settings(tolerance, iterations)
        points = [one for batch in problem.points for one in _examples(batch)]
        found = [
            _respond(objective, problem.queries, one, weight, settings)
            for one, weight in zip(points, weights, strict=True)
        ]
        changes = []
        for index in _spread(own, checked):
            halved = weights[index] / 2
            half = _respond(objective, problem.queries, points[index], halved, settings)
            change, whole = half.response - found[index].response, found[index].response
            changes.append(float(change.norm() / whole.norm().clamp(min=1e-300)))
    worst = max(one.gradient_norm for one in found)
    details: dict[str, Any] = {
        "epsilon": min(weights),
        "epsilon_largest": max(weights),
        "gradient_norm": worst,
        "converged": worst <= tolerance,
        "tolerance": tolerance,
        "evaluations": sum(one.evaluations for one in found) / len(found),
        "halved_change": max(changes, default=None),
        "largest_self_influence": float(own.max()),
        "damping": inverse.damping,
    }
    scores = torch.stack([one.response for one in found], 1).double().cpu()
    return Result(scores, watch.seconds, details)


@dataclass(frozen=True)
class _Settings:
    tolerance: float
    iterations: int


@dataclass(frozen=True)
class _Response:
    """Of the queries to one point, [K], and how its minima were found."""

    response: Tensor
    gradient_norm: float
    evaluations: int


def _respond(
    objective: BregmanObjective,
    queries: Batch,
    point: Batch,
    epsilon: float,
    settings: _Settings,
) -> _Response:
    """(f(θ(ε)) - f(θ(-ε))) / 2ε for one point."""
    if not objective.begin(point):  # no gradient: θs is the minimum
        return _Response(torch.zeros(len(queries[0]), device=objective.model.device), 0.0, 0)
    u = np.zeros(objective.size)
    gains, worst, evaluations = [], 0.0, 0
    for signed in (epsilon, -epsilon):
        # In u, which ε scales, the second minimum is the first but for ε's order: begin there.
        u, norm, count = _minimum(objective, u, signed, settings)
        worst, evaluations = max(worst, norm), evaluations + count
        gains.append(objective.gain(objective.step(u, signed), queries))
    return _Response((gains[0] - gains[1]) / (2 * epsilon), worst, evaluations)


def _minimum(
    objective: BregmanObjective, u: Vector, epsilon: float, settings: _Settings
) -> tuple[Vector, float, int]:
    """Where J is least, its gradient's norm there, and how often it was evaluated."""
    first = objective.evaluate(u, epsilon)
    if objective.gradient_norm <= settings.tolerance:
        return u, objective.gradient_norm, 1
    known = [first]

    def evaluate(x: Vector) -> tuple[float, Vector]:
        # It asks for where it begins, too.
        return known.pop() if known else objective.evaluate(x, epsilon)

    def stop(intermediate_result: OptimizeResult) -> None:
        # The line search takes the point that it evaluated last.
        if objective.gradient_norm <= settings.tolerance:
            raise StopIteration

    found = minimize(
        evaluate,
        u,
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={
            "maxcor": 30,
            "ftol": 0.0,
            "gtol": 0.0,
            "maxiter": settings.iterations,
            "maxfun": 20 * settings.iterations,
        },
    )
    return found.x, float(np.linalg.norm(found.jac)), found.nfev


def _examples(batch: Batch) -> list[Batch]:
    return [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(len(batch[0]))]


def _spread(values: Tensor, count: int) -> list[int]:
    """Indices of so many values, from the least to the largest."""
    count = min(count, len(values))
    order = values.argsort().tolist()
    return [order[round(place)] for place in np.linspace(0, len(order) - 1, count)]
