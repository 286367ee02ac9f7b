"""The FLOPs that a plan predicts are those that torch counts while the work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import SHAPES
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from inflcli.ekfac import Basis, CorrectedSum, CovarianceSum, DampedInverse
from inflcli.ekfac.cost import corrected_macs, covariance_macs, query_macs, rotation_macs
from inflcli.ekfac.covariance import block_sizes
from inflcli.influence.cost import ModuleShape, Work, route_macs
from inflcli.influence.dense import DenseQueries, ExpandedQueries
from inflcli.influence.factored import FactoredQueries
from inflcli.stages.planning.outline import read_outline


def macs(work) -> float:
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return counter.get_total_flops() / 2


def basis(size: int, blocks: int) -> Basis:
    return Basis(tuple(torch.randn(n, n) for n in block_sizes(size, blocks)))


@pytest.mark.parametrize(("size", "blocks"), [(40, 1), (40, 3), (1300, 1), (1300, 2)])
def test_a_covariance(size, blocks):
    total = CovarianceSum.zeros(size, blocks, torch.float32, torch.device("cpu"))
    rows = torch.randn(7, size)
    assert macs(lambda: total.add(rows)) == 7 * covariance_macs(size, blocks)


@pytest.mark.parametrize("tokens", [3, 60])
@pytest.mark.parametrize("blocks", [1, 2])
def test_corrected_eigenvalues(tokens, blocks):
    """With few tokens a and g are rotated, with many the gradient."""
    outputs, inputs = 32, 48
    total = CorrectedSum.zeros(outputs, inputs, torch.float32, torch.device("cpu"))
    a, g = torch.randn(2, tokens, inputs), torch.randn(2, tokens, outputs)
    bases = basis(inputs, blocks), basis(outputs, blocks)
    counted = macs(lambda: total.add(a, g, [tokens, tokens], *bases))
    assert counted == 2 * corrected_macs(tokens, outputs, inputs, blocks)


@pytest.mark.parametrize("tokens", [3, 60])
def test_a_query_kept_whole(tokens):
    outputs, inputs, blocks = 32, 48, 2
    bases = basis(inputs, blocks), basis(outputs, blocks)
    inverse = DampedInverse(bases, torch.ones(outputs, inputs), 0.0)
    a, g = torch.randn(1, tokens, inputs), torch.randn(1, tokens, outputs)
    counted = macs(lambda: inverse.rotate_back(inverse.gradients(a, g).preconditioned([0])))
    assert counted == query_macs(tokens, outputs, inputs, None, blocks, torch.float32)
    assert rotation_macs(inputs, blocks) == sum(n**2 for n in block_sizes(inputs, blocks))


@pytest.mark.parametrize("token_scores", [False, True])
@pytest.mark.parametrize("route", ["stored dense", "dense", "factored"])
def test_scores(route, token_scores):
    outputs, inputs, queries, sequences, tokens = 32, 48, 3, 4, 9
    owner = torch.arange(queries).repeat_interleave(2)
    factored = FactoredQueries(torch.randn(outputs, 6), torch.randn(inputs, 6), owner, queries)
    one = {
        "stored dense": DenseQueries(torch.randn(queries, outputs, inputs)),
        "dense": ExpandedQueries.of(factored),
        "factored": factored,
    }[route]
    a, g = torch.randn(sequences, tokens, inputs), torch.randn(sequences, tokens, outputs)
    work = Work(queries, sequences, 0, tokens, 4, 1.0, token_scores=token_scores)
    shape = ModuleShape(outputs, inputs, None if route == "stored dense" else 6)
    route = route.removeprefix("stored ")
    counted = macs(lambda: one.token_scores(a, g) if token_scores else one.sequence_scores(a, g))
    # The inner products with a, of dense token scores, are no matrix product.
    assert counted == sequences * tokens * route_macs(route, shape, work)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_pass_of_the_model(tiny_model, shape):
    """Against a real model with numbers; its attention is not in torch's count on a CPU."""
    folder: Path = tiny_model(shape)
    tokens = 24
    outline = read_outline(folder, "mlp", tokens)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    network.requires_grad_(False)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    counted = macs(lambda: network(input_ids=ids)) * 2 / tokens
    assert outline.forward == pytest.approx(counted, rel=1e-6)
    assert outline.parameters == sum(value.numel() for value in network.parameters())
    # Less than the forward: nothing below the lowest tracked module, and no weight's gradient;
    # more than its products with weights above that, since attention takes two for one.
    assert 0.5 * counted < outline.backward < 1.3 * counted
