"""The damped Gauss-Newton solve to any precision: what EK-FAC approximates, Eq. 9 of the paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
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

    solves = _Solves(inverse, whitening, rows, steps, checkpoint)
    with watch("solve"):
        start = None
        if solves.single_steps is None and given.model.dtype == torch.float32:
            start = solves.run(given, None, max(tolerance, _SINGLE)).x
        solution = solves.run(problem, start, tolerance)
        residual = solves.residual(problem, solution.x)
    with watch("score"):
        scores = influences(problem.model, solution.x, problem.points).cpu()
    details: dict[str, Any] = {
        "residual": residual,
        # The recursion's residual and the true one part by rounding alone.
        "converged": residual <= 2 * tolerance,
        "steps": solution.steps,
        "single_steps": solves.single_steps or 0,
        "tolerance": tolerance,
        "damping": inverse.damping,
    }
    seconds = {**watch.seconds}
    seconds["solve"] += solves.earlier
    return Result(scores, seconds, details)


class _Solves:
    """One in float32, if any, then one in float64; a checkpoint says where they had come to."""

    def __init__(
        self,
        inverse: Inverse,
        whitening: Whitening | None,
        rows: int,
        steps: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._inverse, self._whitening, self._rows, self._steps = inverse, whitening, rows, steps
        self._checkpoint = checkpoint
        found = None if checkpoint is None else checkpoint.find()
        self._tensors, self._about = ({}, {}) if found is None else found
        self.single_steps: int | None = self._about.get("single_steps")
        """Those in float32, once they are done."""
        self.earlier = float(self._about.get("seconds", 0.0))
        """Seconds before this process."""
        self._started = time.perf_counter()

    def run(self, problem: Problem, start: Matrices | None, tolerance: float) -> Solution:
        """In the problem's type."""
        dtype, gradients = problem.model.dtype, problem.model.gradients(problem.queries)
        begun = None
        if self._about.get("type") == str(dtype):
            begun = Iteration.of_tensors(self._tensors, gradients)
        own = inverse_for(problem, self._inverse, None)
        found = conjugate_gradient(
            self._apply(problem),
            gradients,
            precondition=(
                own.solve if self._whitening is None else _squared(self._whitening, dtype)
            ),
            start=None if start is None else _to(start, dtype),
            steps=self._steps,
            tolerance=tolerance,
            begun=begun,
            told=partial(self._keep, str(dtype)),
        )
        if dtype == torch.float32:
            self.single_steps = found.steps
        return found

    def residual(self, problem: Problem, x: Matrices) -> float:
        """The largest, computed anew."""
        gradients = problem.model.gradients(problem.queries)
        return float(relative_residual(self._apply(problem), x, gradients).max())

    def _apply(self, problem: Problem) -> Apply:
        product = capped_product(problem.model, problem.fitted, self._rows)
        return damped(product, self._inverse.damping)

    def _keep(self, dtype: str, at: Iteration) -> None:
        if self._checkpoint is None:
            return
        about = {
            "type": dtype,
            "single_steps": self.single_steps,
            "seconds": self.earlier + time.perf_counter() - self._started,
            "residual": float(at.residuals[-1].max()),
        }
        self._checkpoint.keep(at.tensors, about)


def _squared(whitening: Whitening, dtype: torch.dtype) -> Apply:
    """W Wᵀ, which is in float64, of vectors of another type."""
    return lambda v: _to(whitening.step(whitening.pull(_to(v, torch.float64))), dtype)


def _to(x: Matrices, dtype: torch.dtype) -> Matrices:
    return {name: value.to(dtype) for name, value in x.items()}
