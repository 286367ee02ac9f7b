"""EK-FAC solves with the exact Gauss-Newton Hessian where theory says that it does.

One datum: with one input position there is one a, so the Fisher E_y[(g gᵀ) ⊗ (a aᵀ)] over the
label distribution is S ⊗ A exactly, and A = a aᵀ. The expectation is taken in full: every label of
the vocabulary is run through the package's own passes and weighted with its probability.

Deep linear networks: with y = W_L ⋯ W_1 x, the square loss and pseudo-labels y + ε, ε ~ N(0, I),
the gradient at layer l is g = B_lᵀ ε with B_l = W_L ⋯ W_{l+1}, independent of a. So
E[(g gᵀ) ⊗ (a aᵀ)] = E[g gᵀ] ⊗ E[a aᵀ], and the layer's GGN for sequences of T independent tokens
is T · S ⊗ A. Every step of EK-FAC is quadratic in ε, so an orthogonal matrix of draws with
Σ ε εᵀ = I gives its expectation without error.

In expectation over pseudo-labels the Fisher is the GGN of any model; the last test compares Λ from
many draws with the GGN's diagonal in the Kronecker eigenbasis, within the sampling error.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ggn import GaussNewton, keep_float64
from oracle import relative
from tiny import VOCABULARY
from torch import Tensor
from torch.func import jacrev

from inflcli.ekfac import Basis, CorrectedSum, CovarianceSum, decompose, precondition
from inflcli.ekfac.inverse import rotate_in
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import SampledLabels, TrueLabels
from inflcli.model.load import LoadedModel, load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked
from inflcli.stages.statistics import CorrectedStatistics, CovarianceStatistics

CPU = torch.device("cpu")
DAMPING = [1.0, 0.1, 1e-4]
"""As shares of the mean eigenvalue."""


class Fitted:
    """EK-FAC by the package's pure functions, from expectations given as weighted draws."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.a = CovarianceSum.zeros(inputs, 1, torch.float64, CPU)
        self.s = CovarianceSum.zeros(outputs, 1, torch.float64, CPU)
        self.sums = CorrectedSum.zeros(outputs, inputs, torch.float64, CPU)

    def decompose(self) -> tuple[Basis, Basis]:
        return decompose(self.a.mean())[1], decompose(self.s.mean())[1]

    def solve(self, v: Tensor, damping: float) -> Tensor:
        bases = self.decompose()
        return precondition(rotate_in(v, *bases), self.sums.mean(), damping, *bases)


def assert_solves(fitted: Fitted, exact: Tensor) -> None:
    """(G + λI)⁻¹ v by EK-FAC and by a dense solve, for some λ and v."""
    torch.manual_seed(1)
    shape = fitted.sums.total.shape
    for share in DAMPING:
        damping = share * float(fitted.sums.mean().mean())
        v = torch.randn(shape, dtype=torch.float64)
        damped = exact + damping * torch.eye(len(exact), dtype=torch.float64)
        expected = torch.linalg.solve(damped, v.flatten()).view(shape)
        assert relative(fitted.solve(v, damping), expected) < 1e-8


def all_labels(
    model: LoadedModel, modules: list[TrackedModule], prompt: list[int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """a [V, T, M] and g [V, T, P] of each module for every label y after `prompt`, the only
    predicted token, scaled by the root of the label's probability."""
    tokens = np.array([[*prompt, label] for label in range(VOCABULARY)])
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)
    last = np.full(len(tokens), len(prompt))
    batch = make_batch(np.arange(len(tokens)), tokens, lengths, CPU, last)
    found = {}
    log_p = Passes.for_model(model, modules).run(
        batch, [TrueLabels()], lambda module, a, g: found.update({module.name: (a, g)})
    )
    root = (log_p[:, len(prompt) - 1] / 2).exp()[:, None, None]
    assert float(root.square().sum()) == pytest.approx(1, abs=1e-12)
    return {name: (a, g * root) for name, (a, g) in found.items()}


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama-bias", "neox", "opt"])
def test_one_datum(tiny_model, monkeypatch, shape):
    """A sequence of one input token: exact for every module. A longer one: for those of the last
    layer, which act on the predicting position alone."""
    keep_float64(monkeypatch)
    model = load_model(str(tiny_model(shape)), device="cpu", dtype="float64")
    modules = find_tracked(model.network, "mlp")
    last = [module for module in modules if module.layer == 1]
    for prompt, exact in (([41], modules), ([7, 260, 33, 41], last)):
        drawn = all_labels(model, modules, prompt)
        for module in exact:
            a, g = drawn[module.name]
            fitted = Fitted(module.outputs, module.inputs)
            fitted.a.add(a[0, -2:-1])
            fitted.s.add(g[:, -2])
            fitted.s.count = 1  # the probabilities sum to 1
            fitted.sums.add(a, g, [a.shape[1]] * len(a), *fitted.decompose())
            fitted.sums.count = 1
            truth = GaussNewton(tiny_model(shape), [module.name])
            # The label that follows a position does not enter the GGN; the positions before
            # the last are conditions, not data.
            assert_solves(fitted, truth.matrix([[*prompt, 0]], first=len(prompt) - 1))


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_deep_linear(tokens):
    """Few tokens rotate a and g first, many rotate the gradients."""
    torch.manual_seed(0)
    sizes, sequences = [5, 7, 4, 6], 9
    weights = [
        torch.randn(after, before, dtype=torch.float64)
        for before, after in zip(sizes, sizes[1:], strict=False)
    ]
    x = torch.randn(sequences, tokens, sizes[0], dtype=torch.float64)
    draws = torch.linalg.qr(torch.randn(2 * [tokens * sizes[-1]], dtype=torch.float64))[0]
    draws = draws.view(-1, tokens, sizes[-1])  # Σ ε εᵀ = I over tokens and outputs together
    for layer, weight in enumerate(weights):
        a = x
        for below in weights[:layer]:
            a = a @ below.T
        through = torch.eye(sizes[-1], dtype=torch.float64)
        for above in reversed(weights[layer + 1 :]):
            through = through @ above
        g = draws @ through
        fitted = Fitted(*weight.shape)
        fitted.a.add(a.flatten(0, 1))
        fitted.s.add(g.flatten(0, 1))
        fitted.s.count = tokens
        for row in a:
            pairs = row.expand(len(g), -1, -1), g
            fitted.sums.add(*pairs, [tokens] * len(g), *fitted.decompose())
        fitted.sums.count = sequences

        def output(step: Tensor, layer: int = layer) -> Tensor:
            y = x
            for number, given in enumerate(weights):
                y = y @ (given + step if number == layer else given).T
            return y

        jacobian = jacrev(output)(torch.zeros_like(weight)).flatten(3).flatten(0, 2)
        assert_solves(fitted, jacobian.T @ jacobian / sequences)


def test_the_fisher_is_the_gauss_newton_hessian(tiny_model):
    """Λ from 400 label draws, each entry within its sampling error of the GGN's diagonal."""
    draws, sequences = 400, [[5, 17, 200, 31, 9, 77], [40, 3, 3], [260, 11, 7, 90]]
    model = load_model(str(tiny_model("gpt2")), device="cpu", dtype="float64")
    modules = find_tracked(model.network, "mlp")
    batch = padded(sequences)
    passes = Passes.for_model(model, modules)
    bases = some_bases(model, modules, passes, batch)
    each: dict[str, list[Tensor]] = {module.name: [] for module in modules}
    for stream in range(draws):
        statistics = CorrectedStatistics(modules, bases, model)
        statistics.begin(batch)
        passes.run(batch, [SampledLabels(1, stream)], statistics.consume)
        for name, total in statistics.sums.items():
            each[name].append(total.mean())
    for module in modules:
        found = torch.stack(each[module.name])
        q = torch.kron(*(basis.blocks[0] for basis in reversed(bases[module.name])))
        ggn = GaussNewton(tiny_model("gpt2"), [module.name]).matrix(sequences)
        expected = (q.T @ ggn @ q).diagonal().view(found.shape[1:])
        curved = expected > 1e-12 * expected.max()
        assert bool((found.mean(0)[~curved] < 1e-12 * expected.max()).all())
        z = ((found.mean(0) - expected) / (found.std(0) / draws**0.5))[curved]
        assert float(z.square().mean().sqrt()) < 1.3
        trace = found.sum((1, 2))
        assert abs(float(trace.mean() - expected.sum())) < 3 * float(trace.std()) / draws**0.5
        assert relative(found.mean(0), expected) < 0.1


def padded(sequences: list[list[int]]) -> Batch:
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    return make_batch(np.arange(len(sequences)), tokens, lengths, CPU)


def some_bases(
    model: LoadedModel, modules: list[TrackedModule], passes: Passes, batch: Batch
) -> dict[str, tuple[Basis, Basis]]:
    """Q_A and Q_S of each module, from a few draws: any fixed basis would do."""
    sums = CovarianceStatistics(modules, 1, model)
    sums.begin(batch)
    passes.run(batch, [SampledLabels(0, stream) for stream in range(20)], sums.consume)
    return {
        module.name: (
            decompose(sums.inputs[module.shares_input_with].mean())[1],
            decompose(sums.outputs[module.name].mean())[1],
        )
        for module in modules
    }
