"""TF-IDF scores and candidates equal those of a version with dictionaries and loops."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from corpus_fixtures import (
    DOCUMENTS,
    make_corpus,
    rows_of,
    tokens_of,
    write_jsonl,
    write_queries,
)

from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import Runtime, TfidfConfig
from inflcli.errors import BadInput, StaleArtifact
from inflcli.retrieval import tfidf
from inflcli.stages import tfidf_filter as stage

QUERIES = [("The river", " bends under the the bridge."), ("Qq", "~#"), ("Water", " boils")]
K1 = 1.5


def oracle(documents: list[list[int]], query: list[int]) -> list[float]:
    """Equations 28 and 29 as printed, with the query's tokens where the words say so."""
    holding = {token: sum(token in document for document in documents) for token in set(query)}
    scores = []
    for document in documents:
        score = 0.0
        for token in query:
            here = 1.0 if token in document else 0.0
            rare = math.log((len(documents) - holding[token] + 0.5) / (holding[token] + 0.5) + 1)
            score += (K1 + 1) * here / (K1 + here) * rare
        scores.append(score)
    return scores


@pytest.fixture
def corpus(tiny_tokenizer: Path, tmp_path: Path) -> CorpusReader:
    draw = random.Random(3)
    words = " ".join(DOCUMENTS).split()
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 40))) for _ in range(60)]
    text = write_jsonl(tmp_path / "text.jsonl", texts)
    return make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=24)


def _filter(corpus: CorpusReader, out: Path, queries: Path, **settings: object) -> CandidateReader:
    config = TfidfConfig(**settings)  # type: ignore[arg-type]
    stage.tfidf_filter(corpus.artifact.path, queries, out, config, Runtime())
    return CandidateReader.open(out)


def test_all_scores(tiny_tokenizer: Path, corpus: CorpusReader) -> None:
    queries = [tokens_of(tiny_tokenizer, prompt + completion) for prompt, completion in QUERIES]
    found = tfidf.all_scores(corpus.tokens(0, corpus.n_sequences), corpus.lengths, [*queries, []])
    documents = rows_of(corpus)
    for query, row in zip(queries, found, strict=False):
        np.testing.assert_allclose(row, oracle(documents, query), rtol=1e-6)
    assert not found[-1].any()
    assert not tfidf.all_scores(corpus.tokens(0, 5), corpus.lengths[:5], [[]]).any()
    assert found[0].max() > 0


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_candidates(
    tiny_tokenizer: Path,
    corpus: CorpusReader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    monkeypatch.setattr(stage, "BLOCK", block)
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    found = _filter(corpus, tmp_path / "candidates", path, top=9)
    documents = rows_of(corpus)
    for row, (prompt, completion) in enumerate(QUERIES):
        scores = np.float32(oracle(documents, tokens_of(tiny_tokenizer, prompt + completion)))
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:9]
        np.testing.assert_allclose(found.scores[row], scores[best], rtol=1e-6)
        # Up to ties that rounding in another order may break.
        np.testing.assert_allclose(scores[found.ids[row]], scores[best], rtol=1e-6)
        assert len(set(found.ids[row].tolist())) == 9
    assert found.query_ids == ["q0", "q1", "q2"]
    assert found.union().tolist() == sorted(set(found.ids.reshape(-1).tolist()))


def test_ties_go_to_the_lower_number() -> None:
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 4, (3, 500)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        top = tfidf.TopCandidates(3, 20)
        for block in order:
            top.update(100 * block, scores[:, 100 * block : 100 * block + 100])
            top.restore(*top.ranked())
        ids, best = top.ranked()
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, axis=1))


def test_more_asked_than_there_are(corpus: CorpusReader, tmp_path: Path) -> None:
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    found = _filter(corpus, tmp_path / "candidates", path, top=10_000)
    assert found.ids.shape == (3, corpus.n_sequences)
    assert np.array_equal(found.union(), np.arange(corpus.n_sequences))


def test_interrupted_it_goes_on(
    corpus: CorpusReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    monkeypatch.setattr(stage, "BLOCK", 4)
    whole = _filter(corpus, tmp_path / "whole", path, top=9)
    blocks = 0
    read = CorpusReader.tokens

    def tokens(self: CorpusReader, start: int, stop: int) -> object:
        nonlocal blocks
        blocks += 1
        if blocks % 5 == 0:
            raise KeyboardInterrupt
        return read(self, start, stop)

    monkeypatch.setattr(CorpusReader, "tokens", tokens)
    eager = Runtime(checkpoint_seconds=0)
    interruptions = 0
    while not (tmp_path / "resumed").exists():
        try:
            stage.tfidf_filter(
                corpus.artifact.path, path, tmp_path / "resumed", TfidfConfig(top=9), eager
            )
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 2
    resumed = CandidateReader.open(tmp_path / "resumed")
    np.testing.assert_array_equal(resumed.ids, whole.ids)
    np.testing.assert_array_equal(resumed.scores, whole.scores)


def test_another_tokenizer_is_refused(
    corpus: CorpusReader, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    path = write_queries(tmp_path / "q.jsonl", *QUERIES)
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_tokenizer.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    run = (corpus.artifact.path, path, tmp_path / "candidates", TfidfConfig(), Runtime())
    stage.tfidf_filter(*run, tokenizer=str(other))  # the same content in another place
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content + "\n")
    with pytest.raises(StaleArtifact):
        stage.tfidf_filter(*run, tokenizer=str(other))
    with pytest.raises(BadInput, match="no-such-place"):
        stage.tfidf_filter(*run, tokenizer="./no-such-place")
