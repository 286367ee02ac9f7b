"""Gradients that wait for those of later batches get the scores that each batch alone would give,
once each.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline import Pipeline, layer_scores

from inflcli.influence import dense
from inflcli.influence.cost import ModuleShape, Work, dense_cost
from inflcli.influence.dense import (
    DenseQueries,
    ExpandedQueries,
    GradientQueries,
    Gradients,
    Scratch,
    gradients_waiting,
)
from inflcli.influence.factored import FactoredQueries
from inflcli.stages import scoring

BATCHES = (3, 5, 1, 4, 20, 2)


def batches():
    torch.manual_seed(0)
    first = 0
    for size in BATCHES:
        rows = torch.arange(first, first + size)
        first += size
        yield rows, *(torch.randn(size, 6, width, dtype=torch.float64) for width in (7, 5))


def made(kind: str, count: int) -> GradientQueries:
    """Of 0 to 64 components, in no order, if they are of components; of none if empty."""
    torch.manual_seed(1)
    if kind == "held":
        return DenseQueries(torch.randn(count, 5, 7, dtype=torch.float64))
    each = torch.randint(0, 5, (count,)) ** 3 * (kind != "empty")
    owner = torch.arange(count).repeat_interleave(each)
    left, right = (torch.randn(size, len(owner), dtype=torch.float64) for size in (5, 7))
    return ExpandedQueries.of(FactoredQueries(left, right, owner, count))


@pytest.mark.parametrize("waiting", [0, 1, 4, 10, 35, 100])
@pytest.mark.parametrize(
    ("kind", "count"), [("held", 3), ("expanded", 3), ("expanded", 300), ("empty", 3)]
)
def test_every_sequence_is_scored_once(waiting, kind, count, monkeypatch):
    """Blocks of queries and of their rows end anywhere, as do those of the sequences."""
    monkeypatch.setattr(dense, "_BLOCK", 2 * dense._QUERIES * 7)
    monkeypatch.setattr(dense, "_OUTPUTS", 1)
    monkeypatch.setattr(dense, "_FORMED", 0)
    queries = made(kind, count)
    matrices = torch.empty(count, 5, 7, dtype=torch.float64)
    queries.some(slice(0, count))(matrices, slice(0, 5))
    scratch = Scratch.for_modules([queries.size], torch.float64, torch.device("cpu"))
    gradients, found = Gradients(queries, scratch, waiting), []
    for batch in batches():
        found += gradients.add(*batch)
    sizes = [len(rows) for rows, _ in found]
    if waiting:
        assert sizes == [waiting] * (sum(BATCHES) // waiting)
    else:
        assert sizes == [3, 5, 1, 4, *[8, 8, 4], 2]
    found += gradients.flush(torch.float64)
    assert not list(gradients.flush(torch.float64))
    assert torch.cat([rows for rows, _ in found]).tolist() == list(range(sum(BATCHES)))
    expected = [torch.einsum("btp,qpm,btm->bq", g, matrices, a) for _, a, g in batches()]
    torch.testing.assert_close(torch.cat([part for _, part in found]), torch.cat(expected))


def test_as_many_wait_as_are_worth_it():
    assert gradients_waiting(1024, 16, 10**6) == 56
    assert gradients_waiting(1024, 16, 40) == 40
    assert gradients_waiting(1024, 64, 10**6) == 0
    # Where queries are fewer they wait for 32, or for a quarter of them.
    assert gradients_waiting(128, 16, 256) == 32
    assert gradients_waiting(64, 1, 256) == 16
    assert gradients_waiting(16, 16, 256) == 0


def test_waiting_is_in_the_predicted_cost():
    """What a sequence pays for making the queries dense falls with those that wait."""
    shape = ModuleShape(256, 256, 1024 * 32)
    none, one, many = (dense_cost(shape, Work(1024, 1, n, 256, 2, 40.0)) for n in (0, 1, 256))
    least = dense_cost(shape, Work(1024, 1, 10**9, 256, 2, 40.0))
    assert none == one
    assert (one - least) == pytest.approx(256 * (many - least), rel=1e-3)


def test_a_scan_whose_gradients_wait(tiny_model, tiny_text, tiny_queries, tmp_path, monkeypatch):
    """Three queries, for every number of sequences that they may wait for."""
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path)
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    usual = layer_scores(pipeline.with_batches(2).scan("usual", route="factored"))
    for most in (0, 1, 3, 5, 64):
        monkeypatch.setattr(scoring, "gradients_waiting", lambda *_, most=most: most)
        scan = pipeline.with_batches(2).scan(f"waiting-{most}", route="dense")
        np.testing.assert_allclose(layer_scores(scan), usual, rtol=1e-6, atol=1e-6)
