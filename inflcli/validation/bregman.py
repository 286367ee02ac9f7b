"""The proximal Bregman objective (Eq. 7) of one training point after another, ready to minimise.

With θs the network's weights, n fitted sequences and a point m it is

    J(θ) = 1/n Σ_i KL(p_θs(. | x_i) ‖ p_θ(. | x_i)) - ε log p_θ(z_m) + Σ_modules λ/2 ‖θ - θs‖²

over the tracked parameters; the KL divergence is the Bregman divergence of the loss in the outputs.
It is a function of u [D], in which the curvature is near the identity by a whitening W:

    θ - θs = ε ρ W u,    ρ = |Wᵀ ∇log p(z_m)|.

J - J(θs) is divided by (ε ρ)², so that the gradient at u = 0 is a unit vector whatever ε. W bears
on how fast a minimum is found, and on nothing else. Every term is a difference from θs in a form
that does not cancel (`Likelihood.gain`, `Likelihood.divergence`), so that ε can be small.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inflcli.ekfac.capture import moved
from inflcli.ekfac.gauss_newton import Matrices, frozen
from inflcli.ekfac.linear import Batch, LinearModule
from inflcli.ekfac.solve import conjugate_gradient, damped
from inflcli.validation.problem import Problem, capped_product
from inflcli.validation.replay import ROOM, Replay, at_start
from inflcli.validation.whitening import Whitening

Vector = NDArray[np.float64]
_OUTPUTS = 1 << 18
"""Numbers that a part of the fitted sequences gives, at most, but for one sequence's."""


class BregmanObjective:
    """J as a function of u [size], one float64 vector for all modules."""

    def __init__(
        self, problem: Problem, damping: Mapping[str, float], whitening: Whitening
    ) -> None:
        self.model = problem.model
        self.fitted = [part for batch in problem.fitted for part in self._cut(batch)]
        self._count = problem.sequences
        self._damping = damping
        self._whitening = whitening
        self.size = whitening.size
        self._kept = self._within_room()
        self._curved = damped(capped_product(problem.model, problem.fitted), damping)
        self._rho = 0.0
        self.gradient_norm = 0.0
        """|dJ/du| / (ε ρ)² of the last evaluation."""

    def self_influences(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """|Wᵀ g|² ≈ gᵀ (G + λI)⁻¹ g of every example, [B], g = ∇log p of its targets, or of
        targets drawn from the network. Cost: a pass, and W's."""
        if generator is not None:
            with torch.no_grad():
                outputs = self.model.outputs(batch[0])
                batch = batch[0], self.model.likelihood.sample(outputs, batch[1], generator)
        return self._whitening.pull(self.model.gradients(batch)).square().sum(1)

    def begin(self, point: Batch) -> float:
        """Turn to a point, a batch of one. Returns ρ, which is 0 if its gradient is."""
        self._point, self._point_kept = point, at_start(self.model, point)
        self._rho = float(self.self_influences(point).sqrt())
        return self._rho

    def newton(self, slope: Vector, steps: int, tolerance: float) -> Vector:
        """(d²J/du²)⁻¹ at θs of a slope dJ/du, each over (ε ρ)²: Wᵀ (G + λI) W is that Hessian.

        To a residual of `tolerance` times the slope, by at most so many conjugate gradient steps.
        Cost a step: a Gauss-Newton product, and W's twice.
        """

        def curved(v: Matrices) -> Matrices:
            turned = self._curved(self._whitening.step(v["u"][:, 0]))
            return {"u": self._whitening.pull(turned)[:, None]}

        b = {"u": torch.from_numpy(slope)[None, None].to(self.model.device)}
        found = conjugate_gradient(curved, b, steps=steps, tolerance=tolerance)
        solved: Vector = found.x["u"][0, 0].cpu().numpy()
        return solved

    def step(self, u: Vector, epsilon: float) -> Matrices:
        """θ - θs by module, [P, M]. Cost: W's."""
        steps = self._whitening.step(torch.from_numpy(u[None]).to(self.model.device))
        return {name: epsilon * self._rho * one[0] for name, one in steps.items()}

    def gain(self, step: Matrices, batch: Batch) -> Tensor:
        """log p at θ less that at θs of every example, [B]."""
        with torch.no_grad():
            before = self.model.outputs(batch[0])
            with self._moved(step):
                after = self.model.outputs(batch[0])
            return self.model.likelihood.gain(after, batch[1], before)

    def evaluate(self, u: Vector, epsilon: float) -> tuple[float, Vector]:
        """(J - J(θs)) / (ε ρ)² and its gradient by u, of a point that `begin` turned to.

        Cost: a pass over the fitted sequences, forward from the lowest tracked module on (see
        `Replay`) and backward, and W's twice.
        """
        scale, likelihood = epsilon * self._rho, self.model.likelihood
        step = {name: one.requires_grad_() for name, one in self.step(u, epsilon).items()}
        value = 0.0
        with frozen(self.model.network), torch.enable_grad():
            for batch, kept in zip(self.fitted, self._kept, strict=True):
                start = kept or at_start(self.model, batch)
                with start.again(), self._moved(step):
                    outputs = self.model.outputs(batch[0])
                apart = likelihood.divergence(outputs, batch[1], start.outputs).sum()
                value += _backward(apart / (self._count * scale**2))
            with self._point_kept.again(), self._moved(step):
                outputs = self.model.outputs(self._point[0])
            gained = likelihood.gain(outputs, self._point[1], self._point_kept.outputs).sum()
            value += _backward(-gained / (scale * self._rho))
            for name, one in step.items():
                near = 0.5 * self._damping[name] * one.square().sum()
                value += _backward(near / scale**2)
        slopes: Matrices = {}
        for name, one in step.items():
            assert one.grad is not None
            slopes[name] = scale * one.grad[None]
        gradient = self._whitening.pull(slopes)[0]
        self.gradient_norm = float(gradient.norm())
        return value, gradient.cpu().numpy()

    def _moved(self, step: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        def push(module: LinearModule, a: Tensor) -> Tensor:
            return nn.functional.linear(a, step[module.name])

        return moved(self.model.network, self.model.modules, push, torch.ones(()))

    def _cut(self, batch: Batch) -> list[Batch]:
        """Into parts whose outputs a cache can hold: some twenty of that size come and go."""
        with torch.no_grad():
            outputs = self.model.outputs(batch[0][:1]).numel()
        rows = max(1, _OUTPUTS // outputs)
        return list(zip(*(one.split(rows) for one in batch), strict=True))

    def _within_room(self) -> list[Replay | None]:
        """Every fitted batch at θs, while there is room."""
        found: list[Replay | None] = []
        room = ROOM
        for batch in self.fitted:
            start = at_start(self.model, batch) if room > 0 else None
            room -= 0 if start is None else start.bytes
            found.append(start if room > 0 else None)
        return found


def _backward(term: Tensor) -> float:
    term.backward()
    return float(term.detach())
