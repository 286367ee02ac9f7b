"""What a network's outputs say about its targets: p(y | outputs), and its derivatives.

Everything is summed over a sequence's positions, never averaged: only then is the Fisher of a
sequence its Gauss-Newton Hessian. Axes: B sequences (or examples), any further axes of positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

IGNORED = -100
"""The target of a position where nothing is predicted, as torch's cross-entropy has it."""
_SMALL = 0.5


class Likelihood(Protocol):
    """A distribution of targets, whose parameters are a network's outputs."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """log p(targets | outputs), summed over positions: [B]."""

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """d log p / d outputs, of the outputs' shape; zero where nothing is predicted."""

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the distribution itself, where `targets` has some."""

    def curvature(self, outputs: Tensor, targets: Tensor, tangent: Tensor) -> Tensor:
        """H u for a `tangent` u of the outputs, or for each of [K, B, ..., C], with
        H = -d² log p / d outputs², which does not depend on what the targets are; zero where
        nothing is predicted."""

    def divergence(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        """KL(p(. | before) ‖ p(. | outputs)), summed over positions: [B]. To rounding of its own
        size, however near the two are."""

    def gain(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        """log p(targets | outputs) - log p(targets | before), [B], likewise."""

    def predicted(self, targets: Tensor) -> Tensor | None:
        """Which positions [B, T] have a target; None where an example has one position."""


@dataclass(frozen=True)
class Categorical:
    """One of C classes: outputs are logits [B, C] or [B, T, C], targets int64 [B] or [B, T]."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = outputs.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return _by_sequence(log_p * (targets != IGNORED))

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        slope = -outputs.softmax(-1)
        label = targets.clamp(min=0).unsqueeze(-1)
        slope.scatter_add_(-1, label, torch.ones_like(slope[..., :1]))
        return slope * (targets != IGNORED).unsqueeze(-1)

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        p = outputs.softmax(-1).flatten(0, -2)
        drawn = torch.multinomial(p, 1, generator=generator).view(targets.shape)
        return torch.where(targets == IGNORED, targets, drawn)

    def curvature(self, outputs: Tensor, targets: Tensor, tangent: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        curved = p * (tangent - (p * tangent).sum(-1, keepdim=True))
        return curved * (targets != IGNORED).unsqueeze(-1)

    def divergence(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        return _by_sequence(_apart(outputs, before)[1] * (targets != IGNORED))

    def gain(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        moved, divergence = _apart(outputs, before)
        label = targets.clamp(min=0).unsqueeze(-1)
        gained = moved.gather(-1, label).squeeze(-1) - divergence
        return _by_sequence(gained * (targets != IGNORED))

    def predicted(self, targets: Tensor) -> Tensor | None:
        return targets != IGNORED if targets.dim() > 1 else None


@dataclass(frozen=True)
class Gaussian:
    """A regression: outputs and targets [B, D], the mean and the value. Its negative log is half
    the squared error over the `variance`, and a constant."""

    variance: float = 1.0

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        constant = 0.5 * math.log(2 * math.pi * self.variance)
        return _by_sequence(-0.5 * (outputs - targets).square() / self.variance - constant)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets - outputs) / self.variance

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(
            outputs.shape, generator=generator, dtype=outputs.dtype, device=generator.device
        )
        return outputs + math.sqrt(self.variance) * noise.to(outputs.device)

    def curvature(self, outputs: Tensor, targets: Tensor, tangent: Tensor) -> Tensor:
        return tangent / self.variance

    def divergence(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        return _by_sequence(0.5 * (outputs - before).square() / self.variance)

    def gain(self, outputs: Tensor, targets: Tensor, before: Tensor) -> Tensor:
        middle = 0.5 * (outputs + before)
        return _by_sequence((outputs - before) * (targets - middle) / self.variance)

    def predicted(self, targets: Tensor) -> Tensor | None:
        return None


def _apart(outputs: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each logit rose more than the mean under p(. | before), which is d [..., C], and
    KL(p(. | before) ‖ p(. | outputs)) = log E[exp d] [...]."""
    log_p = before.log_softmax(-1)
    p, d = log_p.exp(), outputs - before
    d = d - (p * d).sum(-1, keepdim=True)
    # E[d] is 0, so that log E[exp d] = log(1 + E[exp d - 1 - d]): of a small d nothing cancels.
    small = d.clamp(-_SMALL, _SMALL)
    near = (p * (small.expm1() - small)).sum(-1).log1p()
    far = (log_p + d).logsumexp(-1)
    return d, torch.where(d.abs().amax(-1) < _SMALL, near, far)


def _by_sequence(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if values.dim() > 1 else values
