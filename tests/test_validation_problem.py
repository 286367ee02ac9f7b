"""A problem that would be answered wrongly is refused, and float64 leaves the caller's alone."""

from __future__ import annotations

import pytest
import torch
from tiny_problems import classifier, regression

from inflcli.ekfac import DampedInverse, Inverse
from inflcli.validation import Problem, ekfac, pbrf, refined


def test_training_mode_is_refused():
    problem = regression()
    problem.model.network.train()
    with pytest.raises(ValueError, match="eval"):
        Problem(problem.model, problem.fitted, problem.points, problem.queries)


def test_nothing_to_do_is_refused():
    problem = regression()
    with pytest.raises(ValueError, match="points"):
        Problem(problem.model, problem.fitted, [], problem.queries)


def test_float64_copies():
    problem = classifier()
    assert problem.in_float64() is problem
    problem.model.network.float()
    inputs, targets = problem.queries
    single = Problem(problem.model, problem.fitted, problem.points, (inputs.float(), targets))
    double = single.in_float64()
    assert single.model.dtype == torch.float32 and double.model.dtype == torch.float64
    assert double.queries[0].dtype == torch.float64 and double.queries[1].dtype == torch.int64
    assert [m.name for m in double.model.modules] == [m.name for m in single.model.modules]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kfax"):
        ekfac(regression(), kind="kfax")


@pytest.mark.parametrize("method", [ekfac, refined, pbrf])
def test_an_identity_is_refused_as_an_inverse(method):
    problem = regression()
    identity = Inverse({m.name: DampedInverse(None, None, 0.0) for m in problem.model.modules})
    with pytest.raises(ValueError, match="identity"):
        method(problem, inverse=identity)


def test_a_module_without_damping_is_refused():
    with pytest.raises(KeyError, match="2"):
        ekfac(regression(), damping={"0": 0.1})
