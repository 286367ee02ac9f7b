"""The route of each module is the one of lower predicted cost that memory allows, and is recorded;
the shared basis is exact when it spans the queries, and keeps what it says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pipeline import Pipeline, scores

from inflcli.artifacts.scan import ScanReader
from inflcli.influence.cost import (
    ModuleShape,
    Work,
    choose_routes,
    dense_cost,
    factored_cost,
    waiting_bytes,
)
from inflcli.influence.dense import ExpandedQueries
from inflcli.influence.factored import FactoredQueries
from inflcli.influence.shared import share

WORK = Work(queries=16, sequences=16, waiting=0, tokens=256, element=2, balance=40.0)
NARROW = ModuleShape(256, 256, 16 * 32)
WIDE = ModuleShape(11008, 4096, 16 * 32)


def routes(shapes, work=WORK, memory=1e12, forced="auto"):
    return choose_routes(shapes, work, memory=memory, forced=forced)


def test_wide_modules_are_factored_and_many_queries_dense():
    many = replace(WORK, queries=1024, waiting=64)
    assert routes({"m": WIDE}) == {"m": "factored"}
    assert routes({"m": replace(NARROW, columns=1024 * 32)}, many) == {"m": "dense"}


def test_the_cheaper_one_is_taken():
    for columns in (16, 64, 256, 1024, 4096):
        shape = ModuleShape(688, 256, columns)
        cheaper = "dense" if dense_cost(shape, WORK) < factored_cost(shape, WORK) else "factored"
        assert routes({"m": shape}) == {"m": cheaper}
    few = ModuleShape(688, 256, 16)
    assert factored_cost(few, WORK) < dense_cost(few, WORK)


def test_token_scores_make_dense_queries_dear():
    shape = ModuleShape(688, 256, 16 * 32)
    work = replace(WORK, token_scores=True)
    assert dense_cost(shape, work) > 5 * dense_cost(shape, WORK)
    assert routes({"m": shape}, work) == {"m": "factored"}


def test_a_short_scan_does_not_pay_for_making_queries_dense():
    shape = ModuleShape(688, 256, 1024 * 8)
    work = replace(WORK, queries=1024, waiting=64)
    assert routes({"m": shape}, work) == {"m": "dense"}
    assert routes({"m": shape}, replace(work, waiting=8)) == {"m": "factored"}


def test_memory_goes_to_what_saves_most():
    """Twice the columns save more at the same size; the third does not fit."""
    work = replace(WORK, queries=1024, waiting=64)
    shapes = {f"m{k}": ModuleShape(256, 256, 1024 * k) for k in (16, 32, 24)}
    room = 2 * waiting_bytes(shapes["m16"], work)
    assert routes(shapes, work, memory=room) == {"m16": "factored", "m32": "dense", "m24": "dense"}


def test_queries_stored_dense_have_no_other_route():
    for forced in ("auto", "factored", "shared", "dense"):
        assert routes({"m": ModuleShape(8, 8, None)}, forced=forced) == {"m": "dense"}


def family(kind: int) -> FactoredQueries:
    """Six queries of rank 2; the columns of all lie in a space of `kind` dimensions."""
    torch.manual_seed(kind)
    left = torch.randn(20, kind, dtype=torch.float64) @ torch.randn(kind, 12, dtype=torch.float64)
    right = torch.randn(30, kind, dtype=torch.float64) @ torch.randn(kind, 12, dtype=torch.float64)
    return FactoredQueries(left, right, torch.arange(6).repeat_interleave(2), 6)


def inputs():
    torch.manual_seed(0)
    return (torch.randn(3, 5, size, dtype=torch.float64) for size in (30, 20))


def test_a_shared_basis_that_spans_the_queries_is_exact():
    queries, (a, g) = family(4), inputs()
    shared = share(queries, 1 - 1e-12)
    assert shared.left.shape == (20, 4)
    assert shared.right.shape == (30, 4)
    torch.testing.assert_close(shared.sequence_scores(a, g), queries.sequence_scores(a, g))
    torch.testing.assert_close(shared.token_scores(a, g), queries.token_scores(a, g))


def test_a_smaller_shared_basis_keeps_what_it_says():
    queries = family(12)
    shared = share(queries, 0.9)
    assert shared.left.shape[1] < 12
    whole = ExpandedQueries.of(queries).dense().matrices
    kept = shared.left @ shared.cores.matrices @ shared.right.T
    lost = (whole - kept).square().sum() / whole.square().sum()
    assert shared.kept == pytest.approx(1 - float(lost))
    assert 0.75 < shared.kept < 1


@pytest.mark.parametrize("route", ["dense", "factored", "shared"])
def test_a_scan_takes_and_records_the_route(tiny_model, tiny_text, tiny_queries, tmp_path, route):
    pipeline = Pipeline(tiny_model("llama"), tmp_path)
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries, rank=4)
    usual, forced = pipeline.scan("usual"), pipeline.scan("forced", route=route)
    assert set(ScanReader.open(forced).artifact.manifest.details["routes"].values()) == {route}
    for one, other in zip(scores(usual), scores(forced), strict=True):
        if route == "shared":
            assert np.corrcoef(one, other)[0, 1] > 0.99
        else:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
