"""A whitening squares to the inverse that it says: EK-FAC's, or that of G + λI itself."""

from __future__ import annotations

import pytest
import torch
from dense import Dense, every
from oracle import relative
from tiny_problems import classifier, regression

from inflcli.ekfac import fit
from inflcli.validation import SpectralWhitening, ggn
from inflcli.validation.whitening import KroneckerWhitening

DAMPING = {"0": 0.02, "2": 0.1}
PROBLEMS = {"gaussian": regression, "categorical": classifier}


@pytest.fixture(params=PROBLEMS)
def both(request):
    problem = PROBLEMS[request.param]()
    names = [module.name for module in problem.model.modules]
    return problem, Dense(problem.model.network, names, request.param)


def inverted(both):
    problem, dense = both
    g = dense.ggn(every(problem.fitted)[0])
    return torch.linalg.inv(g + torch.diag(dense.each(DAMPING)))


def test_all_eigenvectors(both):
    problem, dense = both
    white = SpectralWhitening(problem, DAMPING, 1000)
    root = dense.flat(white.step(torch.eye(white.size, dtype=torch.float64)))
    assert relative(root.T @ root, inverted(both)) < 1e-9


def test_as_many_as_the_rank_are_all(both):
    """Of one sequence the curvature has no more than its outputs."""
    problem, dense = both
    one = type(problem)(
        problem.model,
        [tuple(x[:1] for x in problem.fitted[0])],
        problem.points,
        problem.queries,
    )
    white = SpectralWhitening(one, DAMPING, 3)
    root = dense.flat(white.step(torch.eye(white.size, dtype=torch.float64)))
    assert relative(root.T @ root, inverted((one, dense))) < 1e-9


def test_kronecker(both):
    problem, dense = both
    inverse = fit(problem.model, problem.fitted).inverse(damping=DAMPING)
    eye = torch.eye(dense.size, dtype=torch.float64)
    root = dense.flat(KroneckerWhitening(inverse).step(eye))
    expected = dense.flat(inverse.solve(dense.matrices(eye)))
    assert relative(root.T @ root, expected) < 1e-9


@pytest.mark.parametrize("rank", [0, 8])
def test_pull_is_the_transpose_of_step(both, rank):
    problem, dense = both
    inverse = fit(problem.model, problem.fitted).inverse(damping=DAMPING)
    white = SpectralWhitening(problem, DAMPING, rank) if rank else KroneckerWhitening(inverse)
    eye = torch.eye(dense.size, dtype=torch.float64)
    step, pull = dense.flat(white.step(eye)), white.pull(dense.matrices(eye))
    assert relative(pull, step.T) < 1e-12


def test_conjugate_gradients_need_fewer_steps_and_find_the_same(both):
    problem, _ = both
    whites = [None, SpectralWhitening(problem, DAMPING, 8), SpectralWhitening(problem, DAMPING, 99)]
    results = [ggn(problem, damping=DAMPING, whitening=white) for white in whites]
    steps = [one.details["steps"] for one in results]
    assert steps[0] > steps[1] > steps[2] and steps[2] <= 2
    for other in results[1:]:
        assert relative(other.scores, results[0].scores) < 1e-6


def test_no_damping_is_refused(both):
    with pytest.raises(ValueError, match="undamped"):
        SpectralWhitening(both[0], {"0": 0.0, "2": 0.1}, 5)
