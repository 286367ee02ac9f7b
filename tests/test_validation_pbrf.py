"""The proximal Bregman response is the influence: the closed form where there is one, and for
small ε what the exact Gauss-Newton solve says, which shares none of its code."""

from __future__ import annotations

import pytest
import torch
from dense import every
from oracle import relative
from tiny_problems import batches, classifier, language, regression
from torch import nn

from inflcli.ekfac import Gaussian, LinearModel
from inflcli.validation import (
    Problem,
    SpectralWhitening,
    correlation,
    ekfac,
    ggn,
    pbrf,
)

DAMPING = {"0": 0.02, "2": 0.1}


@pytest.mark.parametrize("epsilon", [0.03, 1e-4])
def test_linear_regression(epsilon):
    """J is quadratic: its minimum is a linear system, the point's own square among it."""
    torch.manual_seed(0)
    model = LinearModel(nn.Sequential(nn.Linear(3, 1)).double().eval(), Gaussian(2.0))

    def target(count):
        return torch.randn(count, 1, dtype=torch.float64)

    fitted = batches(12, 5, 3, target, 1)
    (points,), (queries,) = batches(4, 4, 3, target, 2), batches(2, 2, 3, target, 3)
    found = pbrf(Problem(model, fitted, [points], queries), damping=0.2, epsilon=epsilon)
    assert found.details["converged"]

    def rows(x):
        return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)

    x = rows(torch.cat([batch[0] for batch in fitted]))
    h = x.T @ x / 12 / 2 + 0.2 * torch.eye(4, dtype=torch.float64)
    module = model.network[0]
    start = torch.cat([module.weight, module.bias[:, None]], 1)[0].detach()

    def gain(theta):
        before, after = ((queries[1][:, 0] - rows(queries[0]) @ w) for w in (start, theta))
        return (before.square() - after.square()) / 4

    for index, (a, y) in enumerate(zip(rows(points[0]), points[1][:, 0], strict=True)):
        gains = []
        for signed in (epsilon, -epsilon):
            # (h + ε a aᵀ / 2) δ = ε (y - a·θs) a / 2
            left = h + signed * torch.outer(a, a) / 2
            right = signed * (y - a @ start) * a / 2
            gains.append(gain(start + torch.linalg.solve(left, right)))
        expected = (gains[0] - gains[1]) / (2 * epsilon)
        assert relative(found.scores[:, index], expected) < 1e-5


def together(problem: Problem) -> Problem:
    """All that is fitted in one batch, for speed."""
    return Problem(problem.model, [every(problem.fitted)], problem.points, problem.queries)


PROBLEMS = {"regression": regression, "classifier": classifier}


@pytest.mark.parametrize("make", PROBLEMS)
def test_networks(make):
    """The very numbers, not only their correlation: signs, scales and damping agree."""
    problem = together(PROBLEMS[make]())
    found = pbrf(problem, damping=DAMPING)
    expected = ggn(problem, damping=DAMPING, tolerance=1e-10).scores
    assert found.details["converged"]
    assert found.details["halved_change"] < 1e-3
    assert relative(found.scores, expected) < 1e-3
    assert min(correlation(found.scores, expected).pearson) > 0.999


@pytest.mark.parametrize("make", PROBLEMS)
def test_weighting_the_queries_says_the_same(make):
    """J's second derivative is symmetric; there is an optimisation a query, and one a point that
    is checked."""
    problem = together(PROBLEMS[make]())
    found = pbrf(problem, damping=DAMPING, weighted="queries", checked=2)
    expected = ggn(problem, damping=DAMPING, tolerance=1e-10).scores
    assert found.scores.shape == expected.shape and found.details["converged"]
    assert relative(found.scores, expected) < 1e-3
    assert 0 < found.details["swapped_change"] < 1e-2
    assert 0 < found.details["halved_change"] < 1e-3


def test_it_weights_points_or_queries():
    with pytest.raises(ValueError, match="points or queries"):
        pbrf(regression(), damping=DAMPING, weighted="sequences")


def test_the_error_is_of_second_order():
    """An ε ten times smaller is a hundred times nearer to the exact solution."""
    problem = together(classifier())
    problem = Problem(problem.model, problem.fitted, problem.points[:1], problem.queries)
    expected = ggn(problem, damping=DAMPING, tolerance=1e-11).scores
    errors = [
        relative(
            pbrf(problem, damping=DAMPING, epsilon=epsilon, checked=0).scores,
            expected,
        )
        for epsilon in (3e-2, 3e-3)
    ]
    assert errors[1] < 1e-3
    assert 50 < errors[0] / errors[1] < 200


def test_a_language_model(tiny_model):
    """With prompts that do not count, the first of two layers tracked in one module, and a norm
    that transformers would round to float32."""
    problem = language(tiny_model("llama"), ["model.layers.0.mlp.down_proj"])
    problem = Problem(
        problem.model, problem.fitted, [tuple(x[:4] for x in problem.points[0])], problem.queries
    )
    damping = ekfac(problem).details["damping"]
    white = SpectralWhitening(problem, damping, 400)
    exact = ggn(problem, damping=damping, whitening=white)
    assert exact.details["converged"]
    for weighted in ("points", "queries"):
        found = pbrf(problem, damping=damping, whitening=white, checked=1, weighted=weighted)
        assert found.details["converged"]
        assert found.details["halved_change"] < 1e-2
        assert min(correlation(found.scores, exact.scores).pearson) > 0.999
        assert relative(found.scores, exact.scores) < 1e-2


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_minimum_does_not_depend_on_the_coordinates(make):
    """By all eigenvectors of G there are a few steps, by some more, by EK-FAC most of all."""
    problem = together(PROBLEMS[make]())
    problem = Problem(problem.model, problem.fitted, problem.points[:1], problem.queries)
    results = [
        pbrf(problem, damping=DAMPING, epsilon=1e-4, whitening=white, checked=0)
        for white in (
            SpectralWhitening(problem, DAMPING, 1000),
            SpectralWhitening(problem, DAMPING, 8),
            None,
        )
    ]
    for other in results[1:]:
        assert relative(other.scores, results[0].scores) < 1e-4
    evaluations = [one.details["evaluations"] for one in results]
    assert evaluations[0] <= 12 and evaluations == sorted(evaluations)


@pytest.mark.parametrize("make", PROBLEMS)
def test_a_newton_step_to_begin_with_leaves_less_to_do(make):
    problem = together(PROBLEMS[make]())
    results = [pbrf(problem, damping=DAMPING, newton=steps, checked=0) for steps in (0, 100)]
    assert relative(results[1].scores, results[0].scores) < 1e-4
    assert results[1].details["converged"]
    assert results[1].details["evaluations"] < results[0].details["evaluations"] / 2


def test_it_says_where_it_did_not_arrive():
    found = pbrf(regression(), damping=DAMPING, iterations=2, checked=0)
    assert not found.details["converged"] and found.details["gradient_norm"] > 1e-6
    assert found.details["halved_change"] is None


def test_a_point_without_a_gradient_has_no_response():
    """Its targets are ignored."""
    problem = classifier()
    inputs, targets = problem.points[0]
    ignored = targets.clone()
    ignored[1] = -100
    found = pbrf(
        Problem(problem.model, problem.fitted, [(inputs, ignored)], problem.queries),
        damping=DAMPING,
    )
    assert (found.scores[:, 1] == 0).all() and (found.scores[:, 0] != 0).all()


def test_each_point_has_an_epsilon_of_its_own():
    """1e-3 over its self-influence for the largest: that of which is large gets little."""
    problem = together(classifier())
    found = pbrf(problem, damping=DAMPING, checked=0).details
    assert 0 < found["epsilon"] < found["epsilon_largest"]
    assert found["epsilon"] == pytest.approx(1e-3 / found["largest_self_influence"])


def test_epsilon_of_zero_is_refused():
    with pytest.raises(ValueError, match="epsilon"):
        pbrf(regression(), damping=DAMPING, epsilon=0.0)


def test_nothing_of_the_network_moves():
    problem = together(classifier())
    before = [value.clone() for value in problem.model.network.parameters()]
    pbrf(problem, damping=DAMPING, iterations=3)
    after = list(problem.model.network.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(value.grad is None and value.requires_grad for value in after)
