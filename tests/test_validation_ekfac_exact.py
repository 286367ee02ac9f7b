"""Where its assumptions hold, EK-FAC is exact: one module and one sequence of one position."""

from __future__ import annotations

import pytest
import torch
from dense import Dense
from oracle import relative
from test_linear_fit import ToldCategorical, ToldGaussian
from torch import nn

from inflcli.ekfac import LinearModel
from inflcli.validation import Problem, ekfac

KINDS = {"gaussian": ToldGaussian, "categorical": ToldCategorical}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["ekfac", "ec-shampoo", "kfac"])
def test_one_sequence(kind, curvature):
    """G = DW DWᵀ of a single gradient g aᵀ, which is an outer product of Kronecker's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3)).double().eval()

    def batch(count):
        target = torch.randn(count, 3, dtype=torch.float64)
        if kind == "categorical":
            target = target.argmax(1)
        return torch.randn(count, 4, dtype=torch.float64), target

    one = batch(1)
    model = LinearModel(network, KINDS[kind]())
    problem = Problem(model, [one], [batch(6)], batch(2))
    dense = Dense(network, ["0"], kind)
    (gradient,) = dense.gradients(one)
    g = torch.outer(gradient, gradient)
    damping = 0.1 * float(gradient.square().mean())
    expected = dense.scores(g, dense.each({"0": damping}), problem.queries, problem.points)
    found = ekfac(problem, kind=curvature)
    assert found.details["damping"]["0"] == pytest.approx(damping, rel=1e-9)
    assert relative(found.scores, expected) < 1e-9
