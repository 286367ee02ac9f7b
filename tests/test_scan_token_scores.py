"""`scan --token-scores` keeps the score of every token: they add up to the sequence's score, and
are those that `attribute` finds, summed over modules.
"""

from __future__ import annotations

import numpy as np
import pytest
from pipeline import Pipeline, layer_scores, scores

from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.scan import ScanReader
from inflcli.errors import CorruptArtifact


@pytest.fixture(scope="module", params=[None, 4], ids=["full", "rank4"])
def pipeline(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory):
    found = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"))
    found.prepare(tiny_text)
    found.fit()
    found.precondition(tiny_queries, rank=request.param)
    found.scan("plain")
    found.scan("scan", token_scores=True)
    return found


def token_scores(folder):
    reader = ScanReader.open(folder)
    return np.stack([reader.token_scores(query) for query in range(len(reader.query_ids))])


def test_they_add_up_to_the_score(pipeline):
    tokens = token_scores(pipeline.run / "scan")
    expected = scores(pipeline.run / "plain")
    np.testing.assert_allclose(tokens.sum(-1), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores(pipeline.run / "scan"), expected, rtol=1e-6, atol=1e-6)
    layers = [layer_scores(pipeline.run / name) for name in ("scan", "plain")]
    np.testing.assert_allclose(*layers, rtol=1e-5, atol=1e-5)


def test_nothing_is_predicted_at_the_last_token(pipeline):
    tokens = token_scores(pipeline.run / "scan")
    lengths = CorpusReader.open(pipeline.run / "corpus").lengths
    for sequence, length in enumerate(lengths):
        assert (tokens[:, sequence, length - 1 :] == 0).all()
        assert (tokens[:, sequence, : length - 1] != 0).any()


def test_they_are_those_of_attribute(pipeline):
    reader = AttributionReader.open(pipeline.attribute(top_k=5))
    tokens = token_scores(pipeline.run / "scan")
    ids, _ = ScanReader.open(pipeline.run / "scan").top()
    found = reader.token_scores(0)
    for rank, sequence in enumerate(ids[0, 0, :5]):
        np.testing.assert_allclose(
            found[rank].sum(0), tokens[0, sequence, : found.shape[-1]], rtol=1e-4, atol=1e-5
        )


def test_what_is_not_scanned_is_nan(pipeline):
    tokens = token_scores(pipeline.scan("part", token_scores=True, start=3, stop=9))
    scanned = ~np.isnan(tokens).any(axis=(0, 2))
    assert np.flatnonzero(scanned).tolist() == list(range(3, 9))


def test_a_scan_without_them_says_so(pipeline):
    with pytest.raises(CorruptArtifact, match="token_scores"):
        ScanReader.open(pipeline.run / "plain").token_scores(0)
