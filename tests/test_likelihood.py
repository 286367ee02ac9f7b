"""A likelihood's slope, curvature, divergence and gain are what autograd and torch.distributions
make of its log p, in float64, and nothing where nothing is predicted."""

from __future__ import annotations

import pytest
import torch
from torch import distributions
from torch.autograd.functional import hessian

from inflcli.ekfac import IGNORED, Categorical, Gaussian

CASES = {
    "gaussian": (Gaussian(0.7), (4, 3)),
    "classes": (Categorical(), (4, 5)),
    "sequences": (Categorical(), (3, 4, 5)),
}


@pytest.fixture(params=CASES)
def case(request):
    """A likelihood, outputs, targets and other outputs nearby."""
    torch.manual_seed(0)
    likelihood, shape = CASES[request.param]
    outputs, other = (2 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    if request.param == "gaussian":
        targets = torch.randn(shape, dtype=torch.float64)
    else:
        targets = torch.randint(shape[-1], shape[:-1])
        if request.param == "sequences":
            targets[0, 2:] = IGNORED
            targets[1, 0] = IGNORED
    return likelihood, outputs, targets, other


def distribution(likelihood, outputs):
    if isinstance(likelihood, Gaussian):
        return distributions.Normal(outputs, likelihood.variance**0.5)
    return distributions.Categorical(logits=outputs)


def summed(values, targets):
    """Over positions that predict."""
    if targets.dtype == torch.int64:
        values = values * (targets != IGNORED)
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def test_log_prob(case):
    likelihood, outputs, targets, _ = case
    safe = targets.clamp(min=0) if targets.dtype == torch.int64 else targets
    expected = summed(distribution(likelihood, outputs).log_prob(safe), targets)
    assert torch.allclose(likelihood.log_prob(outputs, targets), expected, rtol=1e-12)


def test_slope(case):
    likelihood, outputs, targets, _ = case
    outputs.requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.log_prob(outputs, targets).sum(), outputs)
    assert torch.allclose(likelihood.slope(outputs.detach(), targets), expected, atol=1e-13)


def test_curvature(case):
    likelihood, outputs, targets, other = case
    size = outputs.numel()
    whole = hessian(lambda x: -likelihood.log_prob(x, targets).sum(), outputs).reshape(size, size)
    found = likelihood.curvature(outputs, targets, other)
    assert torch.allclose(found.flatten(), whole @ other.flatten(), atol=1e-12)


def test_divergence(case):
    likelihood, outputs, targets, other = case
    both = [distribution(likelihood, x) for x in (other, outputs)]
    expected = summed(distributions.kl_divergence(*both), targets)
    assert torch.allclose(likelihood.divergence(outputs, targets, other), expected, rtol=1e-12)


def test_gain(case):
    likelihood, outputs, targets, other = case
    expected = likelihood.log_prob(outputs, targets) - likelihood.log_prob(other, targets)
    assert torch.allclose(likelihood.gain(outputs, targets, other), expected, rtol=1e-12)


def test_differences_of_a_tiny_step_keep_their_digits(case):
    """The divergence of a step of 1e-9 is half its square in the curvature's norm, 1e-18; the gain
    is the slope's, less than that."""
    likelihood, before, targets, direction = case
    step = 2.0**-30  # exact, and so is what it is multiplied with
    direction = torch.round(direction * 16) / 16
    before = torch.round(before * 2**10) / 2**10
    outputs = before + step * direction
    curved = direction * likelihood.curvature(before, targets, direction)
    per = curved.flatten(1).sum(1)
    found = likelihood.divergence(outputs, targets, before) / step**2
    assert torch.allclose(found, per / 2, rtol=1e-6)
    slope = (direction * likelihood.slope(before, targets)).flatten(1).sum(1)
    gained = likelihood.gain(outputs, targets, before) / step
    assert torch.allclose(gained, slope - step * per / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1e-4, 0.49, 0.51, 3.0, 1000.0])
def test_derivatives_of_the_divergence(size):
    """By the outputs it is p - softmax, with the sign of the KL divergence, at any distance."""
    torch.manual_seed(0)
    before = torch.randn(6, 4, dtype=torch.float64)
    outputs = before + size * torch.randn(6, 4, dtype=torch.float64)
    outputs.requires_grad_()
    targets = torch.zeros(6, dtype=torch.int64)
    (found,) = torch.autograd.grad(
        Categorical().divergence(outputs, targets, before).sum(), outputs
    )
    expected = outputs.softmax(-1) - before.softmax(-1)
    assert torch.allclose(found, expected.detach(), rtol=1e-9, atol=1e-12)


def test_samples(case):
    """Means over many draws; where nothing is predicted, nothing is drawn."""
    likelihood, outputs, targets, _ = case
    generator = torch.Generator().manual_seed(0)
    draws = [likelihood.sample(outputs, targets, generator) for _ in range(20_000)]
    draws = torch.stack(draws)
    if isinstance(likelihood, Gaussian):
        assert torch.allclose(draws.mean(0), outputs, atol=0.03)
        assert torch.allclose(draws.var(0), torch.full_like(outputs, 0.7), atol=0.04)
        return
    wanted = targets != IGNORED
    assert (draws[:, ~wanted] == IGNORED).all()
    shares = torch.nn.functional.one_hot(draws.clamp(min=0), outputs.shape[-1]).double().mean(0)
    assert torch.allclose(shares[wanted], outputs.softmax(-1)[wanted], atol=0.02)
