"""Token and module influences add up to the sequence's score, and depth groups do, too.

`attribute` checks the sum itself: it refuses a scan whose score is another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from pipeline import Pipeline, layer_scores, scores
from tiny import SHAPES

from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.scan import ScanReader
from inflcli.errors import NumericalFault
from inflcli.influence.dense import ExpandedQueries
from inflcli.influence.factored import FactoredQueries

TOP = 6


@pytest.fixture(scope="module", params=SHAPES)
def run(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model(request.param), tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries, rank=4)
    pipeline.scan()
    pipeline.attribute(top_k=TOP)
    return pipeline


def test_tokens_and_modules_sum_to_the_score(run):
    reader = AttributionReader.open(run.run / "attribution")
    expected, sequences = scores(run.run / "scan"), reader.sequences()
    for query in range(len(expected)):
        found = reader.token_scores(query).astype(np.float64)
        truth = expected[query, sequences[query]]
        size = np.abs(found).sum((1, 2))
        assert np.abs(found.sum((1, 2)) - truth).max() < 1e-5 * size.max()
        assert np.array_equal(reader.scores()[query], truth)


def test_depth_groups_sum_to_the_score(run):
    groups, whole = layer_scores(run.run / "scan"), scores(run.run / "scan")
    assert groups.shape == (*whole.shape, 2)
    assert np.abs(groups.sum(-1) - whole).max() < 1e-5 * np.abs(groups).max()


def test_modules_sum_to_their_depth_group(run):
    reader = AttributionReader.open(run.run / "attribution")
    layer = np.array([module["layer"] for module in reader.modules])
    groups, sequences = layer_scores(run.run / "scan"), reader.sequences()
    for query in range(len(groups)):
        found = reader.token_scores(query).sum(-1)
        for group in (0, 1):
            off = found[:, layer == group].sum(-1) - groups[query, sequences[query], group]
            assert np.abs(off).max() < 1e-5 * np.abs(found).max()


def test_the_ranks_are_those_of_the_scores(run):
    """First half the highest scores, second half the lowest, strongest first."""
    sequences = AttributionReader.open(run.run / "attribution").sequences()
    for query, row in enumerate(scores(run.run / "scan")):
        order = np.argsort(-row, kind="stable")
        assert row[sequences[query, :TOP]].tolist() == row[order[:TOP]].tolist()
        assert row[sequences[query, TOP:]].tolist() == row[order[::-1][:TOP]].tolist()


def test_no_influence_where_nothing_is_predicted(run):
    """Neither at a sequence's last token nor in the padding; and some at every other token."""
    reader = AttributionReader.open(run.run / "attribution")
    lengths, sequences = CorpusReader.open(run.run / "corpus").lengths, reader.sequences()
    assert len(set(lengths.tolist())) > 3
    for query in range(len(sequences)):
        found = reader.token_scores(query)
        for rank, sequence in enumerate(sequences[query]):
            last = lengths[sequence] - 1
            assert not found[rank, :, last:].any()
            assert np.abs(found[rank, :, :last]).sum(0).all()


@pytest.mark.parametrize("factor", [-1.0, 1.2])
def test_a_score_that_was_altered_is_refused(run, tmp_path, factor):
    path = run.run / f"altered{factor}"
    run.scan(path.name)
    group = zarr.open_group(path, mode="a")
    top = group["top_scores"][...]
    top[1, 0, 2] *= factor
    group["top_scores"][...] = top
    rewrite_sizes(path)
    assert ScanReader.open(path).top()[1][1, 0, 2] == top[1, 0, 2]
    with pytest.raises(NumericalFault, match="query 'q1' do not add up"):
        run.attribute(f"attribution{factor}", path.name, top_k=TOP)
    assert not (run.run / f"attribution{factor}").exists()


def rewrite_sizes(path: Path) -> None:
    """Let the manifest hold the sizes that the files have now."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["size"] = (path / name).stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_token_scores_of_both_routes():
    """s[b, t, q] = g[b, t]ᵀ V_q a[b, t], by loops."""
    torch.manual_seed(0)
    a, g = (torch.randn(2, 3, size, dtype=torch.float64) for size in (5, 4))
    left, right = (torch.randn(size, 6, dtype=torch.float64) for size in (4, 5))
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    factored = FactoredQueries(left, right, owner, 3)
    expanded = ExpandedQueries.of(factored)
    dense = expanded.dense()
    for query in range(3):
        v = left[:, owner == query] @ right[:, owner == query].T
        for b in range(2):
            for t in range(3):
                expected = float(g[b, t] @ v @ a[b, t])
                for route in (factored, expanded, dense):
                    assert float(route.token_scores(a, g)[b, t, query]) == pytest.approx(expected)
                for route in (factored, dense):
                    alone = route.select(query).token_scores(a, g)[b, t, 0]
                    assert float(alone) == pytest.approx(expected)
            total = float(((g[b].T @ a[b]) * v).sum())
            for route in (factored, expanded, dense):
                assert float(route.sequence_scores(a, g)[b, query]) == pytest.approx(total)
