"""Influence predicts retraining where it is exact: on least squares, with its sign.

A linear regression's Gauss-Newton Hessian is its Hessian, and EK-FAC of one linear module with one
output is it, so the LDS is near one, and removing a query's top points costs more than random ones.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from inflcli.ekfac import Gaussian, LinearModel, fit, influences
from inflcli.validation.bank import Bank
from inflcli.validation.lds import lds, subsets
from inflcli.validation.points import Examples
from inflcli.validation.removal import measure_removals, plan_removals
from inflcli.validation.retraining import Recipe, train

N, K, D = 60, 8, 5
RECIPE = Recipe(
    epochs=60, batch_size=30, learning_rate=0.1, weight_decay=0.0, clip=None, dtype="float64"
)


def make_network() -> nn.Module:
    return nn.Linear(D, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bank, np.ndarray]:
    """A bank, and scores [K, N] of the queries under the model trained on all."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(N + K, D, generator=draw, dtype=torch.float64)
    truth = torch.randn(D, 1, generator=draw, dtype=torch.float64)
    targets = inputs @ truth + torch.randn(N + K, 1, generator=draw, dtype=torch.float64)
    data = Examples(inputs[:N], targets[:N], Gaussian())
    queries = Examples(inputs[N:], targets[N:], Gaussian())
    model = LinearModel(train(make_network, data, range(N), RECIPE), Gaussian())
    every = [data.batch(np.arange(N))]
    inverse = fit(model, every, label_samples=20).inverse(damping_factor=1e-3)
    solved = inverse.solve(model.gradients(queries.batch(np.arange(K))))
    scores = influences(model, solved, every).numpy()
    return Bank(tmp_path_factory.mktemp("bank"), make_network, data, queries), scores


def test_influence_ranks_retrained_models(world):
    bank, scores = world
    some = subsets(N, 20, 0.8)
    outputs = np.stack([one.queries for one in bank.fill([(ids, RECIPE) for ids in some])])
    result = lds(scores, some, outputs)
    assert result.mean > 0.85
    assert result.interval[0] > 0.7
    assert lds(-scores, some, outputs).mean == pytest.approx(-result.mean)


def test_removing_the_top_costs_more_than_random_points(world):
    bank, scores = world
    found = measure_removals(bank, plan_removals({"ekfac": scores}, range(K), [3]), [RECIPE])
    rises = np.array([one.rise for one in found])
    random = np.array([one.random_mean for one in found])
    assert (rises > random).all()
    # To first order a removal costs the sum of the scores over N.
    predicted = np.sort(scores, axis=1)[:, -3:].sum(1) / N
    assert np.corrcoef(rises, predicted)[0, 1] > 0.9
