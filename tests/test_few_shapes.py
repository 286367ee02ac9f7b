"""Batches of any length give products of a few shapes, and what fills them up changes no score.

Every shape is compiled where bfloat16 is multiplied in matrix units, and what is compiled stays in
memory between blocks that come and go.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inflcli.influence.dense import DenseQueries, ExpandedQueries, GradientQueries
from inflcli.influence.factored import FactoredQueries
from inflcli.model.batches import plan_batches
from inflcli.shapes import round_up

OUTPUTS, INPUTS, QUERIES, RANK = 12, 20, 5, 3
BF16 = torch.bfloat16


class Shapes(TorchDispatchMode):
    """Collects the shapes of bfloat16 products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "matmul") and args[-1].dtype == BF16:
            self.seen.add(tuple(x.shape for x in args))
        return func(*args, **(kwargs or {}))


def make_queries(dtype: torch.dtype) -> dict[str, GradientQueries | FactoredQueries]:
    draw = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(size, QUERIES * RANK, generator=draw).to(BF16) for size in (OUTPUTS, INPUTS)
    )
    owner = torch.arange(QUERIES).repeat_interleave(RANK)
    factored = FactoredQueries(left.to(dtype), right.to(dtype), owner, QUERIES)
    matrices = torch.einsum(
        "pqr,mqr->qpm", *(x.unflatten(1, (QUERIES, RANK)).double() for x in (left, right))
    )
    # Rounded once, so that both types hold the same queries.
    dense = DenseQueries(matrices.to(BF16).to(dtype))
    return {"stored dense": dense, "dense": ExpandedQueries.of(factored), "factored": factored}


def batch(sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(sequences * 1000 + length)
    a, g = (torch.randn(sequences, length, d, generator=draw) for d in (INPUTS, OUTPUTS))
    return a.to(BF16).float(), g.to(BF16).float()


@pytest.mark.parametrize("route", ["stored dense", "dense", "factored"])
@pytest.mark.parametrize("kind", ["sequence_scores", "token_scores"])
@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (3, 5), (4, 8), (7, 37), (17, 61)])
def test_scores_are_those_of_exact_products(route, kind, sequences, length):
    a, g = batch(sequences, length)
    found = getattr(make_queries(BF16)[route], kind)(a, g)
    exact = getattr(make_queries(torch.float64)[route], kind)(a.double(), g.double())
    assert found.shape == exact.shape
    # DW, or g L and a R, are rounded to eight bits.
    assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("route", ["stored dense", "dense", "factored"])
@pytest.mark.parametrize(("kind", "most"), [("sequence_scores", 40), ("token_scores", 10)])
def test_few_shapes(route, kind, most):
    queries = make_queries(BF16)[route]
    lengths = np.random.default_rng(0).integers(20, 257, 3000).astype(np.int32)
    plans = plan_batches(np.arange(len(lengths)), lengths, None)
    sizes = {(len(ids), int(lengths[ids].max())) for ids in plans}
    assert len(sizes) > 60
    with Shapes() as shapes:
        for sequences, length in sizes:
            getattr(queries, kind)(*batch(sequences, length))
    assert 0 < len(shapes.seen) < most


def test_round_up():
    sizes = [round_up(size) for size in range(1, 1025)]
    assert all(size <= found <= size * 1.25 for size, found in enumerate(sizes, start=1))
    assert len({found for found in sizes if 256 < found <= 512}) == 4
    assert len({round_up(size, 16) for size in range(257, 513)}) == 16
    assert [round_up(found) for found in sizes] == sizes


@pytest.mark.parametrize(
    ("sequences", "outputs", "inputs"),
    [(8, 256, 768), (1, 1024, 1536), (2, 768, 1024), (3, 512, 1024), (24, 64, 1024)],
)
@pytest.mark.parametrize("queries", [1, 8, 24])
def test_rows_as_large_as_three_quarters_of_a_cache(sequences, outputs, inputs, queries):
    """1.5 Mi numbers with a cache of 2 MiB: the process died in oneDNN's choice of blocks."""
    draw = torch.Generator().manual_seed(0)
    a, g, matrices = (
        torch.randn(*size, generator=draw).to(BF16)
        for size in ((sequences, 2, inputs), (sequences, 2, outputs), (queries, outputs, inputs))
    )
    found = DenseQueries(matrices).sequence_scores(a.float(), g.float())
    gradients = torch.bmm(g.double().mT, a.double()).flatten(1)
    exact = gradients @ matrices.double().flatten(1).T
    assert found.shape == exact.shape
    assert (found - exact).norm() < 0.01 * exact.norm()
