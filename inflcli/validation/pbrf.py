"""The proximal Bregman response function (Eq. 7): influence by training on, without a curvature.

For a training point m the weights θ(ε) minimise J of `bregman`: they stay near θs in the outputs
and in the weights, while the log-probability of z_m weighs ε. The response of a query,
df(θ(ε))/dε at ε = 0, is what the score ∇fᵀ (G + λI)⁻¹ ∇log p(z_m) says to first order; it is taken
as (f(θ(ε)) - f(θ(-ε))) / 2ε, which has an error of order ε².

J's second derivative is symmetric. So the same number is how far log p(z_m) responds to ε times a
query's f, which takes an optimisation a query instead of one a point.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from inflcli.ekfac import Inverse
from inflcli.ekfac.linear import Batch
from inflcli.validation.bregman import BregmanObjective, Vector
from inflcli.validation.problem import Damping, Problem, Result, Watch, inverse_for
from inflcli.validation.whitening import KroneckerWhitening, Whitening

WEIGHTED = ("points", "queries")
_REGIME = 1e-3
"""ε times a self-influence, at most: the share by which a step changes the slope it follows. With a
hundredth the KL divergence of a language model is far from a square, and Newton steps fail. Of an
example that the network has all but fitted ε is less than this allows, since its slope is bent by
the network's second derivative, too: in the whitened coordinates all examples move it as far."""


@dataclass(frozen=True)
class Response:
    """Of what responds to one weighted example, and how its minima were found."""

    values: Tensor
    """(f(θ(ε)) - f(θ(-ε))) / 2ε of all that responds, float64."""
    gradient_norm: float
    evaluations: int
    seconds: float


class Journal(Protocol):
    """Where responses are kept by name as they are found, so that a search can go on."""

    def begin(self, total: int) -> None:
        """So many are going to be asked for."""

    def find(self, name: str) -> Response | None:
        """One of those that were kept."""

    def keep(self, name: str, response: Response) -> None:
        """One that was found."""


class _Forgetful:
    """The journal of a search that is made in one go."""

    def begin(self, total: int) -> None:
        pass

    def find(self, name: str) -> Response | None:
        return None

    def keep(self, name: str, response: Response) -> None:
        pass


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
        journal = journal or _Forgetful()
        settings = _Settings(epsilon, tolerance, iterations, newton, journal)
        by_point = _Weighted("point", objective, problem.points, [problem.queries], settings)
        by_query = _Weighted("query", objective, [problem.queries], problem.points, settings)
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


@dataclass(frozen=True)
class _Settings:
    epsilon: float | None
    tolerance: float
    iterations: int
    newton: int
    journal: Journal


class _Weighted:
    """Examples whose log-probability is weighted, each with its ε, and what responds."""

    def __init__(
        self,
        kind: str,
        objective: BregmanObjective,
        batches: Sequence[Batch],
        responding: Sequence[Batch],
        settings: _Settings,
    ) -> None:
        self._kind, self._responding = kind, responding
        self._objective, self._settings = objective, settings
        self.examples = [one for batch in batches for one in _examples(batch)]
        self.earlier = 0.0
        """Seconds that what the journal had took."""
        generator = torch.Generator(objective.model.device).manual_seed(0)
        self.own = torch.cat(
            [
                torch.maximum(*(objective.self_influences(batch, g) for g in (None, generator)))
                for batch in batches
            ]
        )
        rho = self.own.clamp(min=1e-300).sqrt()
        self.weights: list[float] = (_REGIME / (rho * rho.max())).tolist()
        if settings.epsilon is not None:
            self.weights = [settings.epsilon] * len(self.own)
        if not all(self.weights):
            raise ValueError("epsilon is 0")

    def spread(self, count: int) -> list[int]:
        """So many examples, from the one of least self-influence to that of the largest."""
        count = min(count, len(self.own))
        order = self.own.argsort().tolist()
        return [order[round(place)] for place in np.linspace(0, len(order) - 1, count)]

    def respond(self, index: int, scale: float = 1.0) -> Response:
        """What responds to one example, ε being `scale` times its own."""
        journal, name = self._settings.journal, f"{self._kind}-{index}-{scale:g}"
        found = journal.find(name)
        if found is not None:
            self.earlier += found.seconds
            return found
        start = time.perf_counter()
        values, norm, evaluations = self._search(index, scale * self.weights[index])
        found = Response(values.double().cpu(), norm, evaluations, time.perf_counter() - start)
        journal.keep(name, found)
        return found

    def _search(self, index: int, epsilon: float) -> tuple[Tensor, float, int]:
        objective, responding = self._objective, self._responding
        if not objective.begin(self.examples[index]):  # no gradient: θs is the minimum
            return torch.zeros(sum(len(batch[0]) for batch in responding)), 0.0, 0
        u = np.zeros(objective.size)
        gains, worst, evaluations = [], 0.0, 0
        for signed in (epsilon, -epsilon):
            # In u, which ε scales, the second minimum is the first but for ε's order: begin there.
            u, norm, count = _minimum(objective, u, signed, self._settings)
            worst, evaluations = max(worst, norm), evaluations + count
            step = objective.step(u, signed)
            gains.append(torch.cat([objective.gain(step, batch) for batch in responding]))
        return (gains[0] - gains[1]) / (2 * epsilon), worst, evaluations


def _minimum(
    objective: BregmanObjective, u: Vector, epsilon: float, settings: _Settings
) -> tuple[Vector, float, int]:
    """Where J is least, its gradient's norm there, and how often it was evaluated."""
    value, slope = objective.evaluate(u, epsilon)
    norm, count = objective.gradient_norm, 1
    while settings.newton and norm > settings.tolerance:
        away = objective.newton(slope, settings.newton, min(0.5 * settings.tolerance / norm, 0.1))
        first = objective.evaluate(u - away, epsilon)
        count += 1
        # The Hessian is that at θs: where J is not smooth on the way there it may not serve.
        if objective.gradient_norm > norm / 2:
            break
        u, (value, slope), norm = u - away, first, objective.gradient_norm
    if norm <= settings.tolerance:
        return u, norm, count
    known = [(value, slope)]

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
    return found.x, float(np.linalg.norm(found.jac)), count + found.nfev - 1


def _examples(batch: Batch) -> list[Batch]:
    return [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(len(batch[0]))]


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-300))
