"""The damped Gauss-Newton solve to any precision: what EK-FAC approximates, Eq. 9 of the paper."""

from __future__ import annotations

from typing import Any

from inflcli.ekfac import Inverse, conjugate_gradient, damped, influences
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.solve import Apply, norm
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
    most `steps`; the EK-FAC `inverse` (fitted unless given) only makes them fewer, and gives λ
    unless `damping` does. A `whitening` preconditions in its place: of a small network the
    `SpectralWhitening` leaves a few steps. details: the largest residual, computed anew and not by
    the recursion (`residual`), whether it is as small as was asked (`converged`), and the steps. No
    product runs more than `rows` sequences times queries at once.

    A module that rounds to float32 inside (Llama's norm in transformers does) makes products in
    forward and reverse mode differ by 1e-8, and no residual gets far below that.
    Cost a step: a product a query, two passes forward and one backward over `fitted`.
    """
    watch = Watch(problem.model.device, fit_seconds)
    problem = problem.in_float64()
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)
    apply = damped(capped_product(problem.model, problem.fitted, rows), inverse.damping)
    with watch("solve"):
        gradients = problem.model.gradients(problem.queries)
        found = conjugate_gradient(
            apply,
            gradients,
            precondition=inverse.solve if whitening is None else _squared(whitening),
            steps=steps,
            tolerance=tolerance,
        )
        left = norm(_difference(gradients, apply(found.x)))
        residual = float((left / norm(gradients).clamp(min=1e-300)).max())
    with watch("score"):
        scores = influences(problem.model, found.x, problem.points).cpu()
    details: dict[str, Any] = {
        "residual": residual,
        # The recursion's residual and the true one part by rounding alone.
        "converged": residual <= 2 * tolerance,
        "steps": found.steps,
        "tolerance": tolerance,
        "damping": inverse.damping,
    }
    return Result(scores, watch.seconds, details)


def _squared(whitening: Whitening) -> Apply:
    """W Wᵀ."""
    return lambda v: whitening.step(whitening.pull(v))


def _difference(x: Matrices, y: Matrices) -> Matrices:
    return {name: value - y[name] for name, value in x.items()}
