"""Gradients that wait for those of later batches get the scores that each batch alone would give,
once each.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline import Pipeline, layer_scores

from inflcli.influence import scoring
from inflcli.influence.cost import ModuleShape, Work, dense_cost
from inflcli.influence.scoring import DenseQueries, WaitingGradients

BATCHES = (3, 5, 1, 4, 20, 2)


def batches():
    torch.manual_seed(0)
    first = 0
    for size in BATCHES:
        rows = torch.arange(first, first + size)
        first += size
        yield rows, *(torch.randn(size, 6, width, dtype=torch.float64) for width in (7, 5))


@pytest.mark.parametrize("count", [1, 16, 100, 160, 1000])
def test_every_batch_is_scored_once(count):
    queries = DenseQueries(torch.randn(count, 5, 7, dtype=torch.float64))
    waiting, found, readings = WaitingGradients(queries), [], 0
    expected = [queries.sequence_scores(a, g) for _, a, g in batches()]
    for rows, a, g in batches():
        scored = waiting.add(rows, a, g)
        found += [scored] if scored else []
    readings, last = len(found), waiting.flush(torch.float64)
    found += [last] if last else []
    assert waiting.flush(torch.float64) is None
    scores = torch.full((sum(BATCHES), count), torch.nan, dtype=torch.float64)
    for rows, part in found:
        assert scores[rows].isnan().all()
        scores[rows] = part
    torch.testing.assert_close(scores, torch.cat(expected))
    # 100 queries wait for 6 sequences, 160 for 10, 1,000 for 62.
    assert readings == {1: 6, 16: 6, 100: 3, 160: 2, 1000: 0}[count]


def test_waiting_is_in_the_predicted_cost():
    """A sequence's share of the reading falls to that of a sixteenth of the queries."""
    shape = ModuleShape(256, 256, 10**6)
    work = Work(queries=1024, sequences=1, tokens=256, element=2, balance=1e6)
    one, many = dense_cost(shape, work), dense_cost(shape, Work(1024, 64, 256, 2, 1e6))
    assert one == many


def test_a_scan_whose_gradients_wait(tiny_model, tiny_text, tiny_queries, tmp_path, monkeypatch):
    """Three queries, for every number of sequences that they may wait for."""
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path)
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    usual = layer_scores(pipeline.with_batches(2).scan("usual"))
    for share in (3 / 5, 3 / 7, 3 / 1000):
        monkeypatch.setattr(scoring, "QUERIES_A_GRADIENT", share)
        found = layer_scores(pipeline.with_batches(2).scan(f"waiting-{share}"))
        np.testing.assert_allclose(found, usual, rtol=1e-6, atol=1e-6)
