"""The damped Gauss-Newton solve to any precision: what EK-FAC approximates, Eq. 9 of the paper."""

from __future__ import annotations

from typing import Any

import torch

from inflcli.ekfac import Inverse, conjugate_gradient, damped, influences
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.solve import Apply, Solution, relative_residual
from inflcli.validation.problem import (
    ROWS,
    Damping,
    Problem,
    Result,
    Watch,
    capped_product,
    inverse_for,
)
from inflcli.validation.whitening import Whitening

_SINGLE = 1e-4
"""The relative residual to which float32 solves: its products are exact to some 1e-7 of the largest
eigenvalue, and leave a residual not much below this."""


def ggn(
    problem: Problem,
    *,
    damping: Damping | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
    whitening: Whitening | None = None,
    tolerance: float = 1e-8,
    steps: int = 1000,
    rows: int = ROWS,
) -> Result:
    """∇fᵀ (G + λI)⁻¹ ∇log p(point), with G over `fitted` itself, in float64. Scores [K, N].

    By conjugate gradients from zero, until every |∇f - (G + λI) x| is `tolerance` times |∇f|, at
    most `steps`; a model in float32 is solved in it first, in half the time a step, as far as
    `tolerance` or 1e-4, and float64 goes on from there. The EK-FAC `inverse` (fitted unless given)
    only makes the steps fewer, and gives λ unless `damping` does. A `whitening` preconditions in
    its place: of a small network the `SpectralWhitening` leaves a few steps. No product runs more
    than `rows` sequences times queries at once.

    details: the largest residual, computed anew and not by the recursion (`residual`), whether it
    is as small as was asked (`converged`), the `steps` in float64 and those before in float32
    (`single_steps`).

    Cost a step: a product a query, two passes forward and one backward over `fitted`.
    """
    watch = Watch(problem.model.device, fit_seconds)
    given, problem = problem, problem.in_float64()
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)

    def solve(problem: Problem, begun: Solution | None, until: float) -> tuple[Solution, float]:
        """The solution in the problem's type, and the largest residual, computed anew."""
        dtype, own = problem.model.dtype, inverse_for(problem, inverse, None)
        apply = damped(capped_product(problem.model, problem.fitted, rows), own.damping)
        gradients = problem.model.gradients(problem.queries)
        found = conjugate_gradient(
            apply,
            gradients,
            precondition=own.solve if whitening is None else _squared(whitening, dtype),
            start=None if begun is None else _to(begun.x, dtype),
            steps=steps,
            tolerance=until,
        )
        return found, float(relative_residual(apply, found.x, gradients).max())

    with watch("solve"):
        begun = None
        if given.model.dtype == torch.float32:
            begun, _ = solve(given, None, max(tolerance, _SINGLE))
        found, residual = solve(problem, begun, tolerance)
    with watch("score"):
        scores = influences(problem.model, found.x, problem.points).cpu()
    details: dict[str, Any] = {
        "residual": residual,
        # The recursion's residual and the true one part by rounding alone.
        "converged": residual <= 2 * tolerance,
        "steps": found.steps,
        "single_steps": 0 if begun is None else begun.steps,
        "tolerance": tolerance,
        "damping": inverse.damping,
    }
    return Result(scores, watch.seconds, details)


def _squared(whitening: Whitening, dtype: torch.dtype) -> Apply:
    """W Wᵀ, which is in float64, of vectors of another type."""
    return lambda v: _to(whitening.step(whitening.pull(_to(v, torch.float64))), dtype)


def _to(x: Matrices, dtype: torch.dtype) -> Matrices:
    return {name: value.to(dtype) for name, value in x.items()}
