"""Products with the Gauss-Newton Hessian are those of the dense matrix, within 1e-9 relative,
for several vectors at once, several batches, biases and none, and language models."""

from __future__ import annotations

import pytest
import torch
from dense import Dense, every
from ggn import GaussNewton as Oracle
from ggn import keep_float64
from oracle import relative
from tiny_problems import classifier, language, regression

from inflcli.ekfac import IGNORED, GaussNewton
from inflcli.validation.problem import capped_product

PROBLEMS = {"gaussian": regression, "categorical": classifier}


@pytest.fixture(params=PROBLEMS)
def both(request):
    problem = PROBLEMS[request.param]()
    names = [module.name for module in problem.model.modules]
    return problem, Dense(problem.model.network, names, request.param)


def test_product(both):
    problem, dense = both
    v = torch.randn(4, dense.size, dtype=torch.float64)
    product = GaussNewton(problem.model, lambda: problem.fitted).product(dense.matrices(v))
    expected = v @ dense.ggn(every(problem.fitted)[0])
    assert relative(dense.flat(product), expected) < 1e-12


@pytest.mark.parametrize("rows", [1, 3, 9, 1000])
def test_cut_up_product(both, rows):
    """However few rows a pass may have."""
    problem, dense = both
    v = torch.randn(4, dense.size, dtype=torch.float64)
    product = capped_product(problem.model, problem.fitted, rows)(dense.matrices(v))
    expected = v @ dense.ggn(every(problem.fitted)[0])
    assert relative(dense.flat(product), expected) < 1e-12


def test_gradients(both):
    problem, dense = both
    found = problem.model.gradients(problem.queries)
    assert relative(dense.flat(found), dense.gradients(problem.queries)) < 1e-12


def test_nothing_of_the_network_is_left_changed(both):
    problem, dense = both
    parameters = list(problem.model.network.parameters())
    parameters[0].requires_grad_(False)
    GaussNewton(problem.model, lambda: problem.fitted).product(
        dense.matrices(torch.randn(1, dense.size, dtype=torch.float64))
    )
    assert [value.requires_grad for value in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(value.grad is None for value in parameters)
    assert not any(module._forward_hooks for module in problem.model.network.modules())


MODULES = {
    "llama": ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"],
    "opt": ["model.decoder.layers.0.fc1", "model.decoder.layers.1.fc2"],
}


@pytest.mark.parametrize("shape", MODULES)
def test_language_models(tiny_model, monkeypatch, shape):
    """Conv1D and models that flatten their tokens are among them; prompts do not count."""
    keep_float64(monkeypatch)
    problem = language(tiny_model(shape), MODULES[shape])
    oracle = Oracle(tiny_model(shape), MODULES[shape])
    ids, targets = problem.queries
    first = int((targets[0] == IGNORED).sum()) - 1
    assert first == 2
    dense = Dense(problem.model.network, [], "categorical")
    dense.names, dense.shapes = oracle.names, oracle.shapes
    v = torch.randn(2, oracle.size, dtype=torch.float64)
    found = GaussNewton(problem.model, lambda: [problem.queries]).product(dense.matrices(v))
    expected = v @ oracle.matrix(ids.tolist(), first)
    assert relative(dense.flat(found), expected) < 1e-9
