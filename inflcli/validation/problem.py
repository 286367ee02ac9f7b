"""What is estimated, what an estimate is, and the curvature that estimators share.

Axes: K queries, N training points, P outputs and M inputs of a module (its bias column counted).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inflcli.ekfac import (
    DampedInverse,
    GaussNewton,
    Inverse,
    LinearModel,
    fit,
)
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.linear import Batch
from inflcli.ekfac.solve import Apply
from inflcli.validation.replay import ROOM, Replayed

Damping = float | Mapping[str, float]
"""λ of every module, or one for all of them."""
ROWS = 1024
"""Sequences times vectors in one pass of a Gauss-Newton product, unless said otherwise."""


@dataclass(frozen=True)
class Problem:
    """The influence of training points on queries: a score is ∇fᵀ (G + λI)⁻¹ ∇log p(point).

    f is the log-probability of a query's targets, summed over its positions. G is the mean of the
    Gauss-Newton Hessian over the sequences of `fitted`. The network must be in evaluation mode:
    Raises ValueError if it is not, or if there is nothing fitted or to be scored.
    """

    model: LinearModel
    fitted: Sequence[Batch]
    points: Sequence[Batch]
    queries: Batch

    def __post_init__(self) -> None:
        if not (self.fitted and self.points and len(self.queries[0])):
            raise ValueError("a problem needs fitted sequences, points and queries")
        if self.model.network.training:
            raise ValueError("the network is in training mode: call its eval()")

    @property
    def sequences(self) -> int:
        """How many are fitted."""
        return sum(len(batch[0]) for batch in self.fitted)

    def in_float64(self) -> Problem:
        """The same in float64, with a copy of the network unless it is so already, of which no part
        rounds to float32 on the way."""
        old, problem = self.model, self
        network = old.network
        if old.dtype != torch.float64:
            network = copy.deepcopy(network).double()
            fitted, points = ([_double(one) for one in many] for many in (self.fitted, self.points))
            problem = replace(self, fitted=fitted, points=points, queries=_double(self.queries))

        def forward(network: nn.Module, inputs: Tensor) -> Tensor:
            with _Unrounded():
                return old.forward(network, inputs)

        names = [module.name for module in old.modules]
        return replace(
            problem, model=LinearModel(network, old.likelihood, modules=names, forward=forward)
        )


class _Unrounded(TorchFunctionMode):
    """Where a network asks for float32 it gets float64. Llama's norm does so in transformers: of
    differences as small as a PBRF's, nothing would be left."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        named = {name: _wide(one) for name, one in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@dataclass
class Result:
    """Scores of every point for every query, and how they were come by."""

    scores: Tensor
    """[K, N] float64 on the CPU."""
    seconds: dict[str, float]
    """Wall clock of `fit`, `solve` and `score`."""
    details: dict[str, Any]
    """Plain JSON values."""

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return sum(self.seconds.values())


class Watch:
    """Adds up the wall clock of `fit`, `solve` and `score`."""

    def __init__(self, device: torch.device, fitted: float = 0.0) -> None:
        self.seconds = {"fit": fitted, "solve": 0.0, "score": 0.0}
        self._device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def by_module(model: LinearModel, damping: Damping) -> dict[str, float]:
    """λ of every module. Raises KeyError where one is missing."""
    names = [module.name for module in model.modules]
    if isinstance(damping, Mapping):
        return {name: float(damping[name]) for name in names}
    return {name: float(damping) for name in names}


def inverse_for(problem: Problem, inverse: Inverse | None, damping: Damping | None) -> Inverse:
    """The EK-FAC inverse in the problem's type: fitted unless given, damped anew if `damping` is.

    λ is otherwise the given inverse's own, or 0.1 · mean Λ. Cost: see `ekfac.fit`.
    """
    if inverse is None:
        curvature = fit(problem.model, problem.fitted)
        given = None if damping is None else by_module(problem.model, damping)
        return curvature.inverse(damping=given)
    given = inverse.damping if damping is None else by_module(problem.model, damping)
    found = {name: _damped(one, given[name], problem) for name, one in inverse.modules.items()}
    return Inverse(found)


def damping_for(problem: Problem, damping: Damping | None) -> dict[str, float]:
    """λ of every module: that of the EK-FAC fit unless given."""
    if damping is None:
        return inverse_for(problem, None, None).damping
    return by_module(problem.model, damping)


def capped_product(
    model: LinearModel, batches: Sequence[Batch], rows: int = ROWS, room: float = ROOM
) -> Apply:
    """v to G v for K vectors, with at most `rows` sequences times vectors in one pass.

    A product runs every vector's copy of a batch; a batch or the vectors are cut up where these
    are too many. Cost: a pass to begin with, which keeps what lies below the tracked modules within
    `room` bytes (see `Replayed`), then `gauss_newton_sum` of every batch a product.
    """
    parts = [
        (inputs[first : first + rows], targets[first : first + rows])
        for inputs, targets in batches
        for first in range(0, len(inputs), rows)
    ]
    newton = GaussNewton(Replayed(model, parts, room), lambda: parts)

    def apply(vectors: Matrices) -> Matrices:
        count = len(next(iter(vectors.values())))
        step = max(1, rows // max(len(part[0]) for part in parts))
        found = [
            newton.product({name: v[first : first + step] for name, v in vectors.items()})
            for first in range(0, count, step)
        ]
        return {name: torch.cat([one[name] for one in found]) for name in vectors}

    return apply


def _double(batch: Batch) -> Batch:
    inputs, targets = (x.double() if x.is_floating_point() else x for x in batch)
    return inputs, targets


def _damped(inverse: DampedInverse, damping: float, problem: Problem) -> DampedInverse:
    """The same inverse with another λ, in the problem's type."""
    if inverse.bases is None or inverse.divisor is None:
        raise ValueError("an identity has no curvature to damp or to precondition with")
    dtype, device = problem.model.dtype, problem.model.device
    basis_a, basis_s = (basis.to(dtype, device) for basis in inverse.bases)
    # In float64: of small eigenvalues the difference would leave nothing.
    values = (inverse.divisor.double() - inverse.damping).clamp(min=0.0)
    divisor = (values + damping).to(device, dtype)
    return DampedInverse((basis_a, basis_s), divisor, damping)
