"""The scorers okapi, l and plus give what rank-bm25 itself gives on the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rank_bm25
from corpus_fixtures import (
    DOCUMENTS,
    make_corpus,
    rows_of,
    tokens_of,
    write_jsonl,
    write_queries,
)

from inflcli.artifacts.candidates import CandidateReader
from inflcli.config import Runtime, TfidfConfig
from inflcli.errors import OutOfResources
from inflcli.stages import tfidf_filter as stage

QUERIES = [("The river", " bends."), ("Water", " boils at one hundred")]
KINDS = {
    "okapi": rank_bm25.BM25Okapi,
    "l": rank_bm25.BM25L,
    "plus": rank_bm25.BM25Plus,
}


@pytest.mark.parametrize("scorer", KINDS)
def test_scores_are_the_packages(tiny_tokenizer: Path, tmp_path: Path, scorer: str) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", DOCUMENTS * 3)
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=16)
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    config = TfidfConfig(top=5, scorer=scorer)
    stage.tfidf_filter(corpus.artifact.path, path, tmp_path / "out", config, Runtime())
    found = CandidateReader.open(tmp_path / "out")
    index = KINDS[scorer]([[str(token) for token in row] for row in rows_of(corpus)])
    for row, (prompt, completion) in enumerate(QUERIES):
        query = [str(token) for token in tokens_of(tiny_tokenizer, prompt + completion)]
        scores = index.get_scores(query).astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:5]
        np.testing.assert_array_equal(found.ids[row], best)
        np.testing.assert_array_equal(found.scores[row], scores[best])
    assert found.attributes["scorer"] == scorer


def test_a_corpus_that_does_not_fit_is_refused(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus")
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    monkeypatch.setattr(stage.bm25, "BYTES_PER_TOKEN", 1 << 50)
    with pytest.raises(OutOfResources, match="GiB"):
        stage.tfidf_filter(
            corpus.artifact.path, path, tmp_path / "out", TfidfConfig(scorer="l"), Runtime()
        )
    assert not list(tmp_path.glob("out*"))
