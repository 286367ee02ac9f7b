"""`ekfac.fit` of any network gives the factors of brute force: means of outer products over
positions (or of gradients over examples), and squares of rotated gradients over examples.

The targets are told instead of sampled where numbers are compared one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from dense import Dense
from oracle import Oracle, relative
from tiny_problems import classifier, language, regression

from inflcli.ekfac import IGNORED, Categorical, Gaussian, LinearModel, fit


@dataclass(frozen=True)
class ToldCategorical(Categorical):
    def sample(self, outputs, targets, generator):
        return targets


@dataclass(frozen=True)
class ToldGaussian(Gaussian):
    def sample(self, outputs, targets, generator):
        return targets


def told(model: LinearModel) -> LinearModel:
    made = ToldGaussian() if isinstance(model.likelihood, Gaussian) else ToldCategorical()
    names = [module.name for module in model.modules]
    return LinearModel(model.network, made, modules=names, forward=model.forward)


def mean_outer(rows):
    return sum(torch.outer(row, row) for row in rows) / len(rows)


def whole(basis):
    return torch.block_diag(*basis.blocks)


def check(found, a, s, gradients, blocks=1):
    """Against covariances [M, M] and [P, P] and gradients [N, P, M]."""
    for values, basis, covariance in (
        (found.values_a, found.basis_a, a),
        (found.values_s, found.basis_s, s),
    ):
        q = whole(basis)
        kept = torch.block_diag(
            *[
                torch.ones(len(part), len(part))
                for part in torch.arange(len(q)).tensor_split(blocks)
            ]
        )
        assert relative(q @ torch.diag(values) @ q.T, covariance * kept) < 1e-9
        assert torch.allclose(q @ q.T, torch.eye(len(q), dtype=q.dtype), atol=1e-12)
    q_a, q_s = whole(found.basis_a), whole(found.basis_s)
    expected = sum((q_s.T @ one @ q_a) ** 2 for one in gradients) / len(gradients)
    assert relative(found.corrected, expected) < 1e-9


@pytest.mark.parametrize("make", [regression, classifier])
@pytest.mark.parametrize("blocks", [1, 2])
def test_examples_of_one_position(make, blocks):
    problem = make()
    model = told(problem.model)
    kind = "gaussian" if make is regression else "categorical"
    dense = Dense(model.network, [module.name for module in model.modules], kind)
    gradients = dense.matrices(torch.cat([dense.gradients(batch) for batch in problem.fitted]))
    inputs = torch.cat([batch[0] for batch in problem.fitted])
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    hidden = model.network[1](model.network[0](inputs)).detach()
    a = {"0": inputs, "2": torch.cat([hidden, ones], 1)}
    if make is regression:
        a["0"] = torch.cat([inputs, ones], 1)
    curvature = fit(model, problem.fitted, blocks=blocks)
    assert (curvature.sequences, curvature.positions) == (15, 15)
    for name, found in curvature.modules.items():
        # DW = g aᵀ of one position: g is DW a / |a|².
        g = (gradients[name] @ a[name][:, :, None])[..., 0] / a[name].square().sum(1)[:, None]
        check(found, mean_outer(a[name]), mean_outer(g), gradients[name], blocks)


MODULES = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"]


def test_sequences(tiny_model):
    """Only positions that predict count, and there are several a gradient."""
    folder = tiny_model("llama")
    problem = language(folder, MODULES)
    model = told(problem.model)
    curvature = fit(model, [problem.queries, *problem.points])
    assert (curvature.sequences, curvature.positions) == (7, 2 * 2 + 5 * 6)
    oracle = Oracle(folder, MODULES)
    seen = [(oracle.see(ids.tolist(), ids[1:], first=2), 2) for ids in problem.queries[0]]
    seen += [(oracle.see(ids.tolist(), ids[1:]), 0) for ids in problem.points[0][0]]
    for name, found in curvature.modules.items():
        a = mean_outer(torch.cat([one.a[name][first:-1] for one, first in seen]))
        s = mean_outer(torch.cat([one.g[name][first:-1] for one, first in seen]))
        check(found, a, s, torch.stack([one.dw[name] for one, _ in seen]))


def test_ec_shampoo(tiny_model):
    folder = tiny_model("llama")
    model = told(language(folder, MODULES).model)
    batch = language(folder, MODULES).points[0]
    curvature = fit(model, [batch], curvature="ec-shampoo")
    oracle = Oracle(folder, MODULES)
    seen = [oracle.see(ids.tolist(), ids[1:]) for ids in batch[0]]
    for name, found in curvature.modules.items():
        dw = torch.stack([one.dw[name] for one in seen])
        check(found, (dw.mT @ dw).mean(0), (dw @ dw.mT).mean(0), dw)


def test_kfac_counts_positions(tiny_model):
    """Its Λ is T̄ λ_S λ_Aᵀ, with T̄ the predicted positions a sequence."""
    problem = language(tiny_model("llama"), MODULES)
    curvature = fit(told(problem.model), [problem.queries, *problem.points])
    inverse = curvature.inverse("kfac", damping=0.5)
    for name, found in curvature.modules.items():
        expected = 34 / 7 * torch.outer(found.values_s, found.values_a) + 0.5
        assert relative(inverse.modules[name].divisor, expected) < 1e-12


def test_sampled_labels_are_the_model_s():
    """With many of them Λ comes near the diagonal of QᵀGQ, G the exact Gauss-Newton Hessian."""
    problem = classifier()
    names = [module.name for module in problem.model.modules]
    dense = Dense(problem.model.network, names, "categorical")
    curvature = fit(problem.model, problem.fitted, label_samples=400)
    g = dense.ggn(torch.cat([batch[0] for batch in problem.fitted]))
    first = 0
    for found in curvature.modules.values():
        q = torch.kron(whole(found.basis_s), whole(found.basis_a))
        part = slice(first, first + len(q))
        expected = (q.T @ g[part, part] @ q).diagonal().view_as(found.corrected)
        assert relative(found.corrected, expected) < 0.05
        first += len(q)


def test_targets_are_ignored_but_for_where_they_are():
    """The fit reads no label: others give the same curvature."""
    problem = classifier()
    other = [(inputs, torch.zeros_like(targets)) for inputs, targets in problem.fitted]
    one, two = fit(problem.model, problem.fitted), fit(problem.model, other)
    assert torch.equal(one.modules["0"].corrected, two.modules["0"].corrected)
    ids = [(x, torch.full_like(y, IGNORED)) for x, y in problem.fitted]
    assert fit(problem.model, ids).modules["0"].corrected.abs().max() == 0
