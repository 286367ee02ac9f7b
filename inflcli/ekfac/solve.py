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
_DIVERGED, _ENDED = 1e3, 2.0
"""Times the first residual, or |b| if that is more, that a residual may reach before an iteration
is called divergent: on the way, where it may well rise at first, and at the end."""
_HALVINGS = 20
_VECTORS = ("x", "r", "p", "best", "left")


@dataclass(frozen=True)
class Solution:
    """What an iteration ends with."""

    x: Matrices
    residuals: list[Tensor]
    """|b - (G + λI) x| / |b| before the first step and after each, [K] float64."""
    converged: bool
    """Whether every residual is the tolerance or less."""
    step_size: float = 1.0

    @property
    def steps(self) -> int:
        return len(self.residuals) - 1


def damped(product: Apply, damping: Mapping[str, float]) -> Apply:
    """v to (G + λI) v."""

    def apply(v: Matrices) -> Matrices:
        return {name: one + damping[name] * v[name] for name, one in product(v).items()}

    return apply


@dataclass
class Iteration:
    """Where conjugate gradients are after a step: what goes on from it is the same to the bit."""

    x: Matrices
    """The iterate, its residual `r`, and the direction `p` of the last step."""
    r: Matrices
    p: Matrices
    best: Matrices
    """The smoothed answer, and what is `left` of the right hand side."""
    left: Matrices
    rz: Tensor
    """<r, P r> before the last step, [K]."""
    residuals: list[Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All of it by one name each, as it can be written to a file."""
        found = {"rz": self.rz, "residuals": torch.stack(self.residuals)}
        for part in _VECTORS:
            found |= {f"{part}/{name}": one for name, one in getattr(self, part).items()}
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], like: Matrices) -> Iteration:
        """What `tensors` gave, on the device of the systems' right hand sides."""
        device = next(iter(like.values())).device
        vectors = {
            part: {name: tensors[f"{part}/{name}"].to(device) for name in like} for part in _VECTORS
        }
        rz, residuals = (tensors[name].to(device) for name in ("rz", "residuals"))
        return cls(**vectors, rz=rz, residuals=list(residuals))


def conjugate_gradient(
    apply: Apply,
    b: Matrices,
    *,
    precondition: Apply | None = None,
    start: Matrices | None = None,
    steps: int,
    tolerance: float = 0.0,
    begun: Iteration | None = None,
    told: Callable[[Iteration], None] | None = None,
) -> Solution:
    """Preconditioned conjugate gradients, at most `steps` of them, with residuals that only fall.

    The iterates' residuals are smoothed (Schönauer): an answer is the point of smallest residual
    between the answer before and the iterate. Stops where every residual is `tolerance` or less.
    From a `start` of `precondition(b)` no step returns just that. `told` gets every step's
    iteration, and one that was kept is gone on with as `begun`. Raises ArithmeticError where a
    residual is not finite. Cost a step: one product and one preconditioning. Memory: seven vectors
    a system, `b` and `start` among them, and what the product takes.
    """
    turn = precondition or _copy
    size = norm(b).clamp(min=_TINY)
    at = _first_iteration(apply, b, start, size) if begun is None else begun
    while len(at.residuals) <= steps and not _within(at.residuals, tolerance):
        z = turn(at.r)
        before, at.rz = at.rz, dot(at.r, z)
        beta = torch.where(before > 0, at.rz / before.clamp(min=_TINY), 0.0)
        for name, value in at.p.items():
            value.mul_(_scalar(beta, value)).add_(z[name])
        del z
        ap = apply(at.p)
        curvature = dot(at.p, ap)
        # A system that is solved, or has left the numbers' range, stands still.
        alpha = torch.where(curvature > 0, at.rz / curvature.clamp(min=_TINY), 0.0)
        _move(at.x, alpha, at.p)
        _move(at.r, -alpha, ap)
        del ap
        _smooth(at.best, at.left, at.x, at.r)
        at.residuals.append(_finite(norm(at.left) / size))
        if told is not None:
            told(at)
    return Solution(at.best, at.residuals, _within(at.residuals, tolerance))


def _first_iteration(apply: Apply, b: Matrices, start: Matrices | None, size: Tensor) -> Iteration:
    x = _zeros(b) if start is None else _copy(start)
    r = _copy(b) if start is None else _add(b, apply(x), -1.0)
    residuals = [_finite(norm(r) / size)]
    return Iteration(x, r, _zeros(b), _copy(x), _copy(r), torch.zeros_like(size), residuals)


def neumann(
    products: Callable[[int], Apply],
    b: Matrices,
    *,
    precondition: Apply,
    start: Matrices | None = None,
    steps: int,
    step_size: float | None = None,
    tail: float = 0.5,
    tolerance: float = 0.0,
) -> Solution:
    """x ← x + α P (b - (G_j + λI) x), with the damped product of a fresh minibatch in step j.

    P is the EK-FAC inverse (ASTRA); with P = I this is LiSSA. The answer is the mean of the last
    `tail` of the iterates, which averages the minibatches' noise out; of the last alone if `tail`
    is 0. `products(j)` gives v to (G_j + λI) v. Without a `step_size` it is one over the largest
    eigenvalue of P (G_0 + λI), by power iteration; where a residual grows past a thousand times
    what it was (or |b|), or ends above twice that, the iteration has diverged, and begins again
    with half the step. Stops at an iterate whose every residual, of its own minibatch, is
    `tolerance` or less. `residuals` are the minibatches', of the iterates; the last is that of the
    answer, of one more minibatch. Raises ArithmeticError if twenty halvings do not help. Cost a
    step: one product and one preconditioning. Memory: six vectors a system, `b` and `start` among
    them, and what the product takes.
    """
    if step_size is None:
        first = products(0)
        step_size = 1.0 / largest_eigenvalue(lambda v: precondition(first(v)), b)
    size, averaged = norm(b).clamp(min=_TINY), max(1, round(tail * steps))
    for _ in range(_HALVINGS):
        x = _zeros(b) if start is None else _copy(start)
        mean, kept = x, 0
        residuals: list[Tensor] = []
        for step in range(steps):
            r = _add(b, products(step)(x), -1.0)
            residuals.append(norm(r) / size)
            if _within(residuals, tolerance):
                return Solution(x, residuals, True, step_size)
            if not _bounded(residuals, _DIVERGED):
                break
            _move(x, torch.full_like(size, step_size), precondition(r))
            if averaged > 1 and step >= steps - averaged:
                kept += 1
                mean = _copy(x) if kept == 1 else mean
                for name, value in mean.items():
                    value.lerp_(x[name], 1.0 / kept)
        else:
            residuals.append(norm(_add(b, products(steps)(mean), -1.0)) / size)
            if _bounded(residuals, _ENDED):
                return Solution(mean, residuals, _within(residuals, tolerance), step_size)
        step_size /= 2
    raise ArithmeticError(f"Neumann iterations diverge even with a step of {step_size:.3g}")


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
    return neumann(products, b, precondition=_copy, steps=steps, step_size=step_size, tail=0.0)


def largest_eigenvalue(apply: Apply, like: Matrices, steps: int = 20) -> float:
    """Of the operator, by power iteration: from below, so an allowance of 10 % is made."""
    generator = torch.Generator().manual_seed(0)
    v = {n: torch.randn(x[:1].shape, generator=generator).to(x) for n, x in like.items()}
    found = norm(v)
    for _ in range(steps):
        size = float(found.clamp(min=_TINY))
        v = apply({name: value / size for name, value in v.items()})
        found = norm(v)
    return 1.1 * float(found)


def relative_residual(apply: Apply, x: Matrices, b: Matrices) -> Tensor:
    """|b - A x| / |b|, [K] float64. Cost: a product."""
    return norm(_add(b, apply(x), -1.0)) / norm(b).clamp(min=_TINY)


def dot(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tensor:
    """<x, y> over all modules, [K] float64."""
    return torch.stack([_dot(x[name], y[name]) for name in x]).sum(0)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1)).double()


def norm(x: Mapping[str, Tensor]) -> Tensor:
    """|x| over all modules, [K] float64."""
    return dot(x, x).sqrt()


def _smooth(best: Matrices, left: Matrices, x: Matrices, r: Matrices) -> None:
    """Move `best`, whose residual is `left`, to the point of smallest residual on the line to x."""
    parts = []
    for name, value in left.items():
        change = r[name] - value
        parts.append(torch.stack([_dot(value, change), _dot(change, change)]))
    along, square = torch.stack(parts).sum(0)
    share = torch.where(square > 0, -along / square.clamp(min=_TINY), 0.0)
    for name, value in left.items():
        value.addcmul_(_scalar(share, value), r[name] - value)
        best[name].addcmul_(_scalar(share, value), x[name] - best[name])


def _move(x: Matrices, scale: Tensor, y: Mapping[str, Tensor]) -> None:
    """x ← x + scale y, a scale a system."""
    for name, value in x.items():
        value.addcmul_(_scalar(scale, value), y[name])


def _add(x: Mapping[str, Tensor], y: Mapping[str, Tensor], scale: float) -> Matrices:
    return {name: torch.add(value, y[name], alpha=scale) for name, value in x.items()}


def _scalar(scale: Tensor, like: Tensor) -> Tensor:
    return scale.to(like)[:, None, None]


def _copy(x: Mapping[str, Tensor]) -> Matrices:
    return {name: value.clone() for name, value in x.items()}


def _zeros(like: Mapping[str, Tensor]) -> Matrices:
    return {name: torch.zeros_like(value) for name, value in like.items()}


def _finite(residuals: Tensor) -> Tensor:
    if not bool(torch.isfinite(residuals).all()):
        raise ArithmeticError("a residual of conjugate gradients is not finite")
    return residuals


def _within(residuals: list[Tensor], tolerance: float) -> bool:
    return bool((residuals[-1] <= tolerance).all())


def _bounded(residuals: list[Tensor], times: float) -> bool:
    """Whether the last residuals are below so many times the first ones, or |b|."""
    return bool((residuals[-1] < times * residuals[0].clamp(min=1.0)).all())
