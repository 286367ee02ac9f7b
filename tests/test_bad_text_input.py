"""Bad input to prepare and tfidf-filter ends in one line, the right exit code, and no traceback;
and `--input` takes several paths, in the order of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus_fixtures import (
    DOCUMENTS,
    inflcli,
    inflcli_here,
    make_corpus,
    write_jsonl,
    write_queries,
)

from inflcli.artifacts.corpus import CorpusReader
from inflcli.cli.prepare import spread_inputs


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)


def _refused(code: int, words: str, *args: str | Path) -> None:
    done = inflcli_here(*args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    line = done.stderr.strip()
    assert line.startswith("error: ") and "\n" not in line, line
    assert words in line, line


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("no file or folder", None),
        ("holds no text", ""),
        ("holds no text", '{"text": ""}\n'),
        ("a.jsonl:2: not JSON", '{"text": "one"}\n{"text": \n'),
    ],
)
def test_prepare_refuses(
    tiny_tokenizer: Path, tmp_path: Path, words: str, content: str | None
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    out = tmp_path / "corpus"
    _refused(2, words, "prepare", "--tokenizer", tiny_tokenizer, "--input", path, "--out", out)
    assert not list(tmp_path.glob("corpus*"))


def test_as_a_process(tmp_path: Path) -> None:
    done = inflcli("tfidf-filter", "--corpus", tmp_path, "--queries", "q", "--out", tmp_path / "o")
    assert done.returncode == 2
    assert "cannot read the queries q" in done.stderr and "Traceback" not in done.stderr
    usage = inflcli("prepare", "--seq-len", "1")
    assert usage.returncode == 2 and "Traceback" not in usage.stderr


def test_prepare_refuses_a_tokenizer(text: Path, tmp_path: Path) -> None:
    rest = ("--input", text, "--out", tmp_path / "corpus")
    _refused(2, "is not a model folder", "prepare", "--tokenizer", "./nowhere", *rest)
    (tmp_path / "empty").mkdir()
    _refused(2, "neither config.json", "prepare", "--tokenizer", tmp_path / "empty", *rest)


def test_prepare_keeps_what_was_made_otherwise(
    tiny_tokenizer: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    make_corpus(text, tiny_tokenizer, out, seq_len=16)
    same = ("prepare", "--tokenizer", tiny_tokenizer, "--input", text, "--out", out)
    _refused(3, "seq-len was 16, now 8", *same, "--seq-len", "8")
    assert CorpusReader.open(out).seq_len == 16
    again = inflcli_here(*same, "--seq-len", "16", "--json")
    assert json.loads(again.stdout)["fresh"] is True
    assert inflcli_here(*same, "--seq-len", "8", "--overwrite").returncode == 0
    assert CorpusReader.open(out).seq_len == 8


def test_filter_refuses(tiny_tokenizer: Path, text: Path, tmp_path: Path) -> None:
    corpus, queries = tmp_path / "corpus", write_queries(tmp_path / "q.jsonl", ("a", "b"))
    base = ("tfidf-filter", "--queries", queries, "--out", tmp_path / "out", "--corpus")
    _refused(3, "no artifact", *base, corpus)
    make_corpus(text, tiny_tokenizer, corpus, seq_len=16)
    _refused(2, "--scorer tf is not one of", *base, corpus, "--scorer", "tf")
    queries.write_text('{"id": "q", "prompt": "", "completion": ""}')
    _refused(2, "q.jsonl:1 (query 'q'): the completion is empty", *base, corpus)
    queries.unlink()
    _refused(2, "cannot read the queries", *base, corpus)
    write_queries(queries, ("a", "b"))
    chunk = corpus / "tokens" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-3] + b"abc")  # of the same size, so that only reading finds it
    _refused(4, "cannot be read", *base, corpus)
    chunk.write_bytes(content[:-1])
    _refused(4, "bytes instead of", *base, corpus)
    chunk.unlink()
    _refused(4, "is missing", *base, corpus)


def test_several_inputs_in_their_order(tiny_tokenizer: Path, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [name * 3]) for name in names]
    args = ["--input", paths[2], paths[0], f"--input={paths[3]}", "--seq-len", "8"]
    args += ["--input", paths[1], "--tokenizer", tiny_tokenizer, "--per-line"]
    done = inflcli_here("prepare", *args, "--out", tmp_path / "corpus")
    assert done.returncode == 0, done.stderr
    corpus = CorpusReader.open(tmp_path / "corpus")
    files = [corpus.sources(index)[0].file for index in range(corpus.n_sequences)]
    assert files == [str(paths[index]) for index in (2, 0, 3, 1)]


def test_spread_inputs() -> None:
    assert spread_inputs(["--input", "a", "b", "--out", "o"]) == [
        "--input", "a", "--input", "b", "--out", "o",
    ]  # fmt: skip
    assert spread_inputs(["--input=a", "b"]) == ["--input=a", "--input", "b"]
    assert spread_inputs(["--out", "o", "x"]) == ["--out", "o", "x"]
