"""The sequences of a corpus, joined, are the documents' own tokens with one eos between documents
(packed), or each a document's (per line); and their spans name the text that they hold."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from corpus_fixtures import DOCUMENTS, eos_of, make_corpus, rows_of, tokens_of, write_jsonl
from transformers import AutoTokenizer

from inflcli.corpus import encode
from inflcli.stages import tokenising


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)


def _packed(tokenizer: Path, texts: list[str]) -> list[int]:
    joined: list[int] = []
    for number, text in enumerate(texts):
        joined += ([eos_of(tokenizer)] if number else []) + tokens_of(tokenizer, text)
    return joined


@pytest.mark.parametrize("seq_len", [2, 7, 64, 1000])
def test_packed_tokens(tiny_tokenizer: Path, text: Path, tmp_path: Path, seq_len: int) -> None:
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=seq_len)
    rows = rows_of(corpus)
    assert sum(rows, []) == _packed(tiny_tokenizer, DOCUMENTS)
    assert all(len(row) == seq_len for row in rows[:-1])
    assert corpus.seq_len == seq_len


def test_bos_leads_every_sequence(tiny_tokenizer: Path, text: Path, tmp_path: Path) -> None:
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=8, bos=True)
    bos = AutoTokenizer.from_pretrained(tiny_tokenizer).bos_token_id
    rows = rows_of(corpus)
    assert all(row[0] == bos for row in rows)
    assert sum((row[1:] for row in rows), []) == _packed(tiny_tokenizer, DOCUMENTS)


@pytest.mark.parametrize("seq_len", [5, 64])
def test_spans_name_the_text(
    tiny_tokenizer: Path, text: Path, tmp_path: Path, seq_len: int
) -> None:
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=seq_len)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    rows = rows_of(corpus)
    reached = [0] * len(DOCUMENTS)
    covered = 0
    for index, row in enumerate(rows):
        for source in corpus.sources(index):
            assert source.document_id == f"d{source.document}"
            assert (source.file, source.line) == (str(text), source.document + 1)
            piece = DOCUMENTS[source.document][source.char_start : source.char_end]
            shown = tokenizer.decode(row[source.token_start : source.token_end])
            # A character cut by the sequence's end decodes to U+FFFD, and is in both spans.
            assert "\ufffd" in shown or shown == piece
            assert source.char_start in (reached[source.document], reached[source.document] - 1)
            reached[source.document] = source.char_end
            covered += source.token_end - source.token_start
    assert reached == [len(document) for document in DOCUMENTS]
    assert covered == sum(map(len, rows)) - (len(DOCUMENTS) - 1)


def test_per_line(tiny_tokenizer: Path, tmp_path: Path) -> None:
    texts = [*DOCUMENTS, "", "A bird."]
    text = write_jsonl(tmp_path / "text.jsonl", texts)
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=12, per_line=True)
    encoded = [tokens_of(tiny_tokenizer, one) for one in texts]
    assert rows_of(corpus) == [one[:12] for one in encoded if len(one) >= 2]
    counts = corpus.artifact.manifest.counts
    assert (counts["short"], counts["empty"]) == (1, 1)
    assert counts["cut"] == sum(len(one) > 12 for one in encoded)
    assert corpus.sources(corpus.n_sequences - 1)[0].document_id == "d6"
    for index in range(corpus.n_sequences):
        (source,) = corpus.sources(index)
        assert (source.token_start, source.token_end) == (0, corpus.lengths[index])


def test_reader_takes_in_any_order(tiny_tokenizer: Path, text: Path, tmp_path: Path) -> None:
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=4)
    whole = corpus.tokens(0, corpus.n_sequences)
    ids = np.random.default_rng(0).integers(0, corpus.n_sequences, 50)
    np.testing.assert_array_equal(corpus.take(ids), whole[ids])
    assert whole.dtype == np.int64
    with pytest.raises(IndexError):
        corpus.take([corpus.n_sequences])


def test_pieces_of_a_long_document_change_nothing(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(DOCUMENTS * 30) + "\n" * 300 + "é" * 500 + "z" * 500
    text = tmp_path / "text.txt"
    text.write_text(long)
    whole = make_corpus(text, tiny_tokenizer, tmp_path / "whole", seq_len=64)
    assert sum(rows_of(whole), []) == tokens_of(tiny_tokenizer, long)
    monkeypatch.setattr(encode, "CONTEXT", 128)
    monkeypatch.setattr(tokenising, "pieces_of", functools.partial(encode.pieces_of, limit=200))
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 3)
    cut = make_corpus(text, tiny_tokenizer, tmp_path / "cut", seq_len=64)
    # Far from the runs of one character, where a tokenizer looks further than the overlap.
    near = sum(rows_of(cut), [])
    body = len(tokens_of(tiny_tokenizer, " ".join(DOCUMENTS * 29)))
    assert near[:body] == tokens_of(tiny_tokenizer, long)[:body]
    assert AutoTokenizer.from_pretrained(tiny_tokenizer).decode(near) == long
    assert [cut.sources(i)[0].char_start for i in range(20)] == [
        whole.sources(i)[0].char_start for i in range(20)
    ]


def test_batches_change_nothing(
    tiny_tokenizer: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_corpus(text, tiny_tokenizer, tmp_path / "one", seq_len=9)
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 1)
    other = make_corpus(text, tiny_tokenizer, tmp_path / "other", seq_len=9)
    assert rows_of(one) == rows_of(other)
    assert one.artifact.fingerprint == other.artifact.fingerprint
