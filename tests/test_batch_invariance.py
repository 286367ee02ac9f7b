"""The score of a query and a sequence does not depend on what else was computed beside it.

Batch size, order, padding, chunks, the other queries, the route, the range and the layers leave it
as it is: within 1e-5 of the query's largest score, in float32, on every shape.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline import Pipeline, layer_scores, scores
from tiny import SHAPES

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import TfidfConfig
from inflcli.stages.tfidf_filter import tfidf_filter

RANKS = {"full": None, "low": 3}


@pytest.fixture(scope="module", params=SHAPES)
def base(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    """A corpus, factors, and a scan of queries of full and of low rank, one sequence at a time."""
    run = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(tiny_model(request.param), run, "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit()
    for name, rank in RANKS.items():
        pipeline.precondition(tiny_queries, name, rank=rank)
        pipeline.with_batches(1).scan(f"scan-{name}", name)
    return pipeline


def assert_same(
    found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = 1e-5
) -> None:
    """Equal within `tolerance` of each query's largest score; NaN in the same places."""
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    scale = np.nanmax(np.abs(expected), axis=tuple(range(1, expected.ndim)), keepdims=True)
    assert np.nanmax(np.abs(found - expected) / scale) < tolerance


def truth(base: Pipeline, name: str = "full") -> NDArray[np.float32]:
    return scores(base.run / f"scan-{name}")


@pytest.mark.parametrize("size", [2, 7, None])
def test_batch_size(base, size):
    for name in RANKS:
        folder = base.with_batches(size).scan(f"batches-{size}-{name}", name)
        assert_same(scores(folder), truth(base, name))
        assert_same(layer_scores(folder), layer_scores(base.run / f"scan-{name}"))


def test_order_and_padding(base, tiny_text, tmp_path):
    """The same documents in another order, stored with more padding."""
    lines = tiny_text.read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    shuffled = tmp_path / "documents.jsonl"
    shuffled.write_text("\n".join(lines[i] for i in order) + "\n")
    base.prepare(shuffled, "shuffled", seq_len=40)
    # Sequences that the shorter corpus cut are other sequences.
    whole = CorpusReader.open(base.run / "corpus").lengths
    same = whole == CorpusReader.open(base.run / "shuffled").lengths[np.argsort(order)]
    assert same.sum() > 10
    for name in RANKS:
        found = scores(base.scan(f"shuffled-{name}", name, "shuffled"))[:, np.argsort(order)]
        assert_same(found[:, same], truth(base, name)[:, same])


@pytest.mark.parametrize("size", [1, 64])
def test_chunks(base, size):
    folder = base.scan(f"chunks-{size}", "full", chunk_size=size)
    assert_same(scores(folder), truth(base))
    assert_same(layer_scores(folder), layer_scores(base.run / "scan-full"))
    for found, expected in zip(
        ScanReader.open(folder).top(), ScanReader.open(base.run / "scan-full").top(), strict=True
    ):
        assert np.allclose(found, expected, rtol=1e-4)


def test_one_query_alone(base, tiny_queries, tmp_path):
    """Preconditioned alone, in a batch without padding, and scanned alone."""
    for number, line in enumerate(tiny_queries.read_text().splitlines()):
        alone = tmp_path / f"{number}.jsonl"
        alone.write_text(line + "\n")
        for name, rank in RANKS.items():
            base.precondition(alone, f"alone-{number}-{name}", rank=rank)
            found = scores(base.scan(f"scan-alone-{number}-{name}", f"alone-{number}-{name}"))
            assert_same(found, truth(base, name)[number : number + 1])


@pytest.mark.parametrize("size", [1, 2])
def test_queries_in_other_batches(base, tiny_queries, size):
    for name, rank in RANKS.items():
        out = f"queries-{size}-{name}"
        base.with_batches(size).precondition(tiny_queries, out, rank=rank)
        assert_same(scores(base.scan(f"scan-{out}", out)), truth(base, name))


def test_routes(base):
    dense, factored = (
        scores(base.scan(f"route-{route}", "low", route=route)) for route in ("dense", "factored")
    )
    assert_same(dense, truth(base, "low"))
    assert_same(factored, truth(base, "low"))
    assert (
        ScanReader.open(base.run / "route-dense").artifact.manifest.details["routes"]
        != (ScanReader.open(base.run / "route-factored").artifact.manifest.details["routes"])
    )


def test_range(base):
    expected = truth(base).copy()
    expected[:, :9] = expected[:, 23:] = np.nan
    assert_same(scores(base.scan("range", "full", start=9, stop=23)), expected)


def test_candidates(base, tiny_queries):
    folder = base.run / "candidates"
    tfidf_filter(base.run / "corpus", tiny_queries, folder, TfidfConfig(top=4), base.runtime)
    found = scores(base.scan("from-candidates", "full", candidates=folder))
    chosen = ~np.isnan(found[0])
    assert 4 <= chosen.sum() <= 12
    expected = truth(base).copy()
    expected[:, ~chosen] = np.nan
    assert_same(found, expected)


def test_layers(base):
    """Only layer 1: the other layer's part is gone, and the rest is the full scan's group."""
    folder = base.scan("layer", "full", layers="1")
    whole = layer_scores(base.run / "scan-full")
    assert_same(scores(folder), whole[:, :, 1])
    assert_same(layer_scores(folder), whole[:, :, 1:])


def test_a_fit_in_other_batches(base, tiny_queries):
    """Factors from other batches give the same scores. In float64: what rounding does to the
    eigenvectors of close eigenvalues would hide a fault in float32."""
    exact = replace(base, dtype="float64")
    found = []
    for size in (1, 7):
        exact.with_batches(size).fit(f"fit-{size}", max_sequences=30)
        exact.precondition(tiny_queries, f"q-fit-{size}", f"fit-{size}")
        found.append(scores(exact.scan(f"scan-fit-{size}", f"q-fit-{size}")))
    assert_same(found[1], found[0], 1e-6)
