"""A positive score raises the query's log-probability: every method says so of a training point
that is the query itself, and training on it does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_problems import classifier, regression

from inflcli.validation import (
    Problem,
    ekfac,
    ggn,
    gradient_cosine,
    gradient_dot,
    lissa,
    pbrf,
    refined,
    sampled_cg,
)

METHODS = {
    "dot": gradient_dot,
    "cosine": gradient_cosine,
    "ekfac": ekfac,
    "kfac": partial(ekfac, kind="kfac"),
    "ec-shampoo": partial(ekfac, kind="ec-shampoo"),
    "blocks": partial(ekfac, blocks=2),
    "lissa": lissa,
    "sampled": sampled_cg,
    "refined": refined,
    "ggn": ggn,
    "pbrf": pbrf,
}


@pytest.mark.parametrize("make", [regression, classifier])
@pytest.mark.parametrize("name", METHODS)
def test_a_point_equal_to_the_query(name, make):
    problem = make()
    problem = Problem(problem.model, problem.fitted, [problem.queries], problem.queries)
    found = METHODS[name](problem)
    assert (found.scores.diagonal() > 0).all()
    assert found.scores.shape == (3, 3) and found.scores.dtype == torch.float64
    assert set(found.seconds) == {"fit", "solve", "score"}
    assert found.total == sum(found.seconds.values()) > 0


@pytest.mark.parametrize("make", [regression, classifier])
def test_a_step_along_the_point_does_what_the_sign_says(make):
    """A step of gradient ascent on a point moves f by the gradients' dot product."""
    problem = make()
    scores = gradient_dot(problem).scores
    network, likelihood = problem.model.network, problem.model.likelihood
    for index, (inputs, targets) in enumerate(
        (x[i : i + 1], y[i : i + 1]) for x, y in problem.points for i in range(len(x))
    ):
        before = problem.model.log_prob(problem.queries)
        gradients = torch.autograd.grad(
            likelihood.log_prob(network(inputs), targets).sum(), list(network.parameters())
        )
        with torch.no_grad():
            for value, slope in zip(network.parameters(), gradients, strict=True):
                value += 1e-7 * slope
            change = (problem.model.log_prob(problem.queries) - before) / 1e-7
            for value, slope in zip(network.parameters(), gradients, strict=True):
                value -= 1e-7 * slope
        assert torch.allclose(change, scores[:, index], rtol=1e-4, atol=1e-5)
