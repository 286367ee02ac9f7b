"""The damped Gauss-Newton solve to any precision: what EK-FAC approximates, Eq. 9 of the paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from inflcli.ekfac import Inverse, conjugate_gradient, damped, influences
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.solve import Apply, Iteration, Solution, relative_residual
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


class Checkpoint(Protocol):
    """Where a solve is kept while it goes on."""

    def find(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        """The tensors and facts that were kept last."""

    def keep(self, tensors: Callable[[], dict[str, Tensor]], about: dict[str, Any]) -> None:
        """Called after every step, to be kept or not: `about` has the `residual`, too."""


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
    checkpoint: Checkpoint | None = None,
) -> Result:
    """∇fᵀ (G + λI)⁻¹ ∇log p(point), with G over `fitted` itself, in float64. Scores [K, N].

    By conjugate gradients from zero, until every |∇f - (G + λI) x| is `tolerance` times |∇f|, at
    most `steps`; a model in float32 is solved in it first, in half the time a step, as far as
    `tolerance` or 1e-4, and float64 goes on from there. The EK-FAC `inverse` (fitted unless given)
    only makes the steps fewer, and gives λ unless `damping` does. A `whitening` preconditions in
    its place: of a small network the `SpectralWhitening` leaves a few steps. No product runs more
    than `rows` sequences times queries at once. From what a `checkpoint` kept of the same problem
    and options it goes on, to the same answer.

    details: the largest residual, computed anew and not by the recursion (`residual`), whether it
    is as small as was asked (`converged`), the `steps` in float64 and those before in float32
    (`single_steps`).

    Cost a step: a product a query, two passes forward and one backward over `fitted`.
    """
    watch = Watch(problem.model.device, fit_seconds)
    given, problem = problem, problem.in_float64()
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)

    found = None if checkpoint is None else checkpoint.find()
    tensors, about = ({}, {}) if found is None else found
    earlier, started = float(about.get("seconds", 0.0)), time.perf_counter()

    def solve(
        problem: Problem, start: Matrices | None, until: float, single_steps: int | None
    ) -> tuple[Solution, float]:
        """The solution in the problem's type, and the largest residual, computed anew."""
        dtype, own = problem.model.dtype, inverse_for(problem, inverse, None)
        apply = damped(capped_product(problem.model, problem.fitted, rows), own.damping)
        gradients = problem.model.gradients(problem.queries)
        facts = {"type": str(dtype), "single_steps": single_steps}
        begun = None
        if about.get("type") == facts["type"]:
            begun = Iteration.of_tensors(tensors, gradients)

        def told(at: Iteration) -> None:
            if checkpoint is not None:
                seconds = earlier + time.perf_counter() - started
                residual = float(at.residuals[-1].max())
                checkpoint.keep(at.tensors, {**facts, "seconds": seconds, "residual": residual})

        found = conjugate_gradient(
            apply,
            gradients,
            precondition=own.solve if whitening is None else _squared(whitening, dtype),
            start=None if start is None else _to(start, dtype),
            steps=steps,
            tolerance=until,
            begun=begun,
            told=told,
        )
        return found, float(relative_residual(apply, found.x, gradients).max())

    with watch("solve"):
        start, single_steps = None, about.get("single_steps")
        if single_steps is None and given.model.dtype == torch.float32:
            single, _ = solve(given, None, max(tolerance, _SINGLE), None)
            start, single_steps = single.x, single.steps
        solution, residual = solve(problem, start, tolerance, single_steps or 0)
    with watch("score"):
        scores = influences(problem.model, solution.x, problem.points).cpu()
    details: dict[str, Any] = {
        "residual": residual,
        # The recursion's residual and the true one part by rounding alone.
        "converged": residual <= 2 * tolerance,
        "steps": solution.steps,
        "single_steps": single_steps or 0,
        "tolerance": tolerance,
        "damping": inverse.damping,
    }
    seconds = {**watch.seconds}
    seconds["solve"] += earlier
    return Result(scores, seconds, details)


def _squared(whitening: Whitening, dtype: torch.dtype) -> Apply:
    """W Wᵀ, which is in float64, of vectors of another type."""
    return lambda v: _to(whitening.step(whitening.pull(_to(v, torch.float64))), dtype)


def _to(x: Matrices, dtype: torch.dtype) -> Matrices:
    return {name: value.to(dtype) for name, value in x.items()}
