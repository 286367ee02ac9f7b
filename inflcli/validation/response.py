"""What responds to one weighted example after another: the minima of J, and how they are found.

Newton steps with the Hessian at θs come first, then scipy's L-BFGS, in whitened coordinates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from inflcli.ekfac.linear import Batch
from inflcli.validation.bregman import BregmanObjective, Vector

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


class Forgetful:
    """The journal of a search that is made in one go."""

    def begin(self, total: int) -> None:
        pass

    def find(self, name: str) -> Response | None:
        return None

    def keep(self, name: str, response: Response) -> None:
        pass


@dataclass(frozen=True)
class Settings:
    """How every minimum is searched for; see `pbrf`."""

    epsilon: float | None
    tolerance: float
    iterations: int
    newton: int
    journal: Journal


class Weighted:
    """Examples whose log-probability is weighted, each with its ε, and what responds."""

    def __init__(
        self,
        kind: str,
        objective: BregmanObjective,
        batches: Sequence[Batch],
        responding: Sequence[Batch],
        settings: Settings,
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
    objective: BregmanObjective, u: Vector, epsilon: float, settings: Settings
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
