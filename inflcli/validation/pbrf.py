"""The proximal Bregman response function (Eq. 7): influence by training on, without a curvature.

For a training point m the weights θ(ε) minimise J of `bregman`: they stay near θs in the outputs
and in the weights, while the log-probability of z_m weighs ε. The response of a query,
df(θ(ε))/dε at ε = 0, is what the score ∇fᵀ (G + λI)⁻¹ ∇log p(z_m) says to first order; it is taken
as (f(θ(ε)) - f(θ(-ε))) / 2ε, which has an error of order ε².

J's second derivative is symmetric. So the same number is how far log p(z_m) responds to ε times a
query's f, which takes an optimisation a query instead of one a point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inflcli.ekfac import Inverse
from inflcli.validation.bregman import BregmanObjective
from inflcli.validation.problem import Damping, Problem, Result, Watch, inverse_for
from inflcli.validation.response import Forgetful, Journal, Settings, Weighted
from inflcli.validation.whitening import KroneckerWhitening, Whitening

WEIGHTED = ("points", "queries")


def pbrf(
    problem: Problem,
    *,
    weighted: str = "points",
    epsilon: float | None = None,
    damping: Damping | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
    whitening: Whitening | None = None,
    tolerance: float = 1e-6,
    iterations: int = 1000,
    newton: int = 0,
    checked: int = 3,
    journal: Journal | None = None,
) -> Result:
    """The responses of the queries' f to every point, [K, N], in float64, by scipy's L-BFGS.

    ε weighs the log-probability of every point in turn, as in Eq. 7; or with `weighted` "queries"
    that of every query's targets, and the points' responses are read off: the same derivative, by K
    optimisations.

    It works in coordinates that are whitened by the EK-FAC `inverse`, or by a `whitening`: for a
    small network `SpectralWhitening` needs a handful of steps instead of hundreds. A minimum is
    found when |dJ/du| is `tolerance` times that at θs, or after so many `iterations`. With `newton`
    steps with the Hessian at θs come first, while they halve the gradient; each is solved for by
    at most so many conjugate gradient steps. λ is that of the `inverse` (an EK-FAC fit's unless
    given), or `damping`. `epsilon` is one for all; unless given, each example has its own: 1e-3
    over ρ times the largest example's ρ, ρ² = |Wᵀ g|² ≈ gᵀ (G + λI)⁻¹ g being its self-influence,
    with g its gradient for its own targets or for some drawn from the network, whichever has more.
    A smaller ε would leave less of J above rounding. What higher orders that leaves is seen by
    halving ε for `checked` examples, from the one of least self-influence to that of the largest.
    Where queries are weighted, so many points are weighted as well, to see that it is the same.
    What a `journal` has is not searched for again; it must be of the same problem and options.

    details: the least and the largest ε (`epsilon`, `epsilon_largest`); the largest `gradient_norm`
    reached, relative to that at θs, whether it is as small as was asked (`converged`), and for how
    many examples it is not (`above_tolerance`): where a ReLU bends at a minimum none is small;
    `evaluations` of J an example, in the mean; `halved_change`, |r(ε) - r(ε/2)| / |r(ε)| over what
    responds, the largest of the checked; and `swapped_change`, the relative difference of the
    checked points' responses by the other way, the largest of them.
    Raises ValueError if ε is 0, `weighted` neither, or the inverse the identity. Cost: N (or K)
    times the evaluations, each a pass over `fitted`, forward and backward.
    """
    if weighted not in WEIGHTED:
        raise ValueError(f"weighted are {' or '.join(WEIGHTED)}, not {weighted}")
    watch = Watch(problem.model.device, fit_seconds)
    problem = problem.in_float64()
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)
    with watch("solve"):
        if whitening is None:
            whitening = KroneckerWhitening(inverse)
        objective = BregmanObjective(problem, inverse.damping, whitening)
        journal = journal or Forgetful()
        settings = Settings(epsilon, tolerance, iterations, newton, journal)
        by_point = Weighted("point", objective, problem.points, [problem.queries], settings)
        by_query = Weighted("query", objective, [problem.queries], problem.points, settings)
        some, others = (by_point, by_query) if weighted == "points" else (by_query, by_point)
        check = some.spread(checked)
        swap = others.spread(checked) if weighted == "queries" else []
        journal.begin(len(some.examples) + len(check) + len(swap))
        found = [some.respond(index) for index in range(len(some.examples))]
        halves = [some.respond(index, 0.5) for index in check]
        changes = [
            _relative(half.values, found[index].values)
            for index, half in zip(check, halves, strict=True)
        ]
        scores = torch.stack([one.values for one in found])
        swapped = [others.respond(index) for index in swap]
        swaps = [
            _relative(one.values, scores[:, index])
            for index, one in zip(swap, swapped, strict=True)
        ]
    worst = max(one.gradient_norm for one in found)
    details: dict[str, Any] = {
        "weighted": weighted,
        "epsilon": min(some.weights),
        "epsilon_largest": max(some.weights),
        "gradient_norm": worst,
        "converged": worst <= tolerance,
        "above_tolerance": sum(one.gradient_norm > tolerance for one in found),
        "tolerance": tolerance,
        "evaluations": sum(one.evaluations for one in found) / len(found),
        "halved_change": max(changes, default=None),
        "largest_self_influence": float(some.own.max()),
        "damping": inverse.damping,
    }
    if swaps:
        details["swapped_change"] = max(swaps)
    scores = scores if weighted == "queries" else scores.T
    seconds = {**watch.seconds}
    seconds["solve"] += some.earlier + others.earlier
    return Result(scores.contiguous(), seconds, details)


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-300))
