"""Solvers of (G + λI) x = b, by products with G alone.

λ may differ between modules. K systems are solved side by side: vectors are [K, P, M] by module,
and every scalar of an iteration is [K].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inflcli.ekfac.gauss_newton import Matrices

Apply = Callable[[Matrices], Matrices]
_TINY = 1e-300
_DIVERGED = 1e3
"""Times |b| that a residual may reach before an iteration is called divergent."""
_HALVINGS = 20


@dataclass(frozen=True)
class Solution:
    """What an iteration ends with."""

    x: Matrices
    residuals: list[Tensor]
    """|b - (G + λI) x| / |b| before the first step and after each, [K] float64."""
    converged: bool
    step_size: float = 1.0

    @property
    def steps(self) -> int:
        return len(self.residuals) - 1


def damped(product: Apply, damping: Mapping[str, float]) -> Apply:
    """v to (G + λI) v."""

    def apply(v: Matrices) -> Matrices:
        return {name: one + damping[name] * v[name] for name, one in product(v).items()}

    return apply


def conjugate_gradient(
    apply: Apply,
    b: Matrices,
    *,
    precondition: Apply | None = None,
    start: Matrices | None = None,
    steps: int,
    tolerance: float = 0.0,
) -> Solution:
    """Preconditioned conjugate gradients, at most `steps` of them, with residuals that only fall.

    The iterates' residuals are smoothed (Schönauer): an answer is the point of smallest residual
    between the answer before and the iterate. Stops where every residual is `tolerance` or less.
    From a `start` of `precondition(b)` no step returns just that. Cost a step: one product and one
    preconditioning. Memory: seven vectors a system.
    """
    turn = precondition or _same
    size = norm(b).clamp(min=_TINY)
    if start is None:
        x = {name: torch.zeros_like(value) for name, value in b.items()}
        r = _copy(b)
    else:
        x = _copy(start)
        r = _add(b, apply(x), -1.0)
    best, left = _copy(x), _copy(r)
    residuals = [norm(left) / size]
    z = turn(r)
    p, rz = _copy(z), dot(r, z)
    for _ in range(steps):
        if bool((residuals[-1] <= tolerance).all()):
            break
        ap = apply(p)
        curvature = dot(p, ap)
        # A system that is solved, or has left the numbers' range, stands still.
        alpha = torch.where(curvature > 0, rz / curvature.clamp(min=_TINY), 0.0)
        x, r = _add(x, p, alpha), _add(r, ap, -alpha)
        best, left = _smoothed(best, left, x, r)
        residuals.append(norm(left) / size)
        z = turn(r)
        fresh = dot(r, z)
        beta = torch.where(rz > 0, fresh / rz.clamp(min=_TINY), 0.0)
        p, rz = _add(z, p, beta), fresh
    return Solution(best, residuals, bool((residuals[-1] <= tolerance).all()))


def neumann(
    products: Callable[[int], Apply],
    b: Matrices,
    *,
    precondition: Apply,
    start: Matrices | None = None,
    steps: int,
    step_size: float | None = None,
    tail: float = 0.5,
) -> Solution:
    """x ← x + α P (b - (G_j + λI) x), with the damped product of a fresh minibatch in step j.

    P is the EK-FAC inverse (ASTRA); with P = I this is LiSSA. The answer is the mean of the last
    `tail` of the iterates, which averages the minibatches' noise out. `products(j)` gives v to
    (G_j + λI) v. Without a `step_size` it is one over the largest eigenvalue of P (G_0 + λI), by
    power iteration; where a residual grows past a thousand |b| the iteration has diverged, and
    begins again with half the step. `residuals` are the minibatches', of the iterates. Raises
    ArithmeticError if twenty halvings do not help. Cost a step: a product and a preconditioning.
    """
    size, last = norm(b).clamp(min=_TINY), max(1, round(tail * steps))
    first = products(0)
    alpha = step_size or 1.0 / largest_eigenvalue(lambda v: precondition(first(v)), b)
    for _ in range(_HALVINGS):
        x = _copy(start) if start is not None else {n: torch.zeros_like(v) for n, v in b.items()}
        mean = {name: torch.zeros_like(value) for name, value in b.items()}
        residuals, kept = [], 0
        for step in range(steps):
            r = _add(b, products(step)(x), -1.0)
            residuals.append(norm(r) / size)
            if not bool((residuals[-1] < _DIVERGED).all()):
                break
            x = _add(x, precondition(r), alpha)
            if step >= steps - last:
                kept += 1
                mean = _add(mean, _add(x, mean, -1.0), 1.0 / kept)
        else:
            residuals.append(norm(_add(b, products(steps)(mean), -1.0)) / size)
            return Solution(mean, residuals, True, alpha)
        alpha /= 2
    raise ArithmeticError(f"Neumann iterations diverge even with a step of {alpha:.3g}")


def lissa(
    products: Callable[[int], Apply],
    b: Matrices,
    *,
    steps: int,
    step_size: float | None = None,
) -> Solution:
    """Agarwal et al.'s recursion r ← b + (I - α (G_j + λI)) r, of which α r is the answer.

    The same iterates as `neumann` without a preconditioner, from zero; the last is the answer, as
    is usual. The scale 1/α is found automatically, and divergence detected, as there.
    """
    return neumann(
        products, b, precondition=_same, steps=steps, step_size=step_size, tail=1.0 / steps
    )


def largest_eigenvalue(apply: Apply, like: Matrices, steps: int = 20) -> float:
    """Of the operator, by power iteration: from below, so an allowance of 10 % is made."""
    generator = torch.Generator().manual_seed(0)
    v = {n: torch.randn(x[:1].shape, generator=generator).to(x) for n, x in like.items()}
    found = torch.zeros(())
    for _ in range(steps):
        v = {name: value / norm(v).clamp(min=_TINY).item() for name, value in v.items()}
        v = apply(v)
        found = norm(v)
    return 1.1 * float(found)


def dot(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tensor:
    """<x, y> over all modules, [K] float64."""
    parts = [torch.linalg.vecdot(x[n].flatten(1), y[n].flatten(1)).double() for n in x]
    return torch.stack(parts).sum(0)


def norm(x: Mapping[str, Tensor]) -> Tensor:
    """|x| over all modules, [K] float64."""
    return dot(x, x).sqrt()


def _smoothed(
    best: Matrices, left: Matrices, x: Matrices, r: Matrices
) -> tuple[Matrices, Matrices]:
    """The point of smallest residual on the line from `best`, whose residual is `left`, to x."""
    change = _add(r, left, -1.0)
    square = dot(change, change)
    share = torch.where(square > 0, -dot(left, change) / square.clamp(min=_TINY), 0.0)
    return _add(best, _add(x, best, -1.0), share), _add(left, change, share)


def _add(x: Mapping[str, Tensor], y: Mapping[str, Tensor], scale: Tensor | float) -> Matrices:
    """x + scale y, a scale a system."""
    found = {}
    for name, value in x.items():
        one = scale.to(value)[:, None, None] if isinstance(scale, Tensor) else scale
        found[name] = value + one * y[name]
    return found


def _copy(x: Mapping[str, Tensor]) -> Matrices:
    return {name: value.clone() for name, value in x.items()}


def _same(x: Matrices) -> Matrices:
    return x
