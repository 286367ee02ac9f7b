"""A damaged chunk of a corpus, or of candidates, is made again by itself, to the same bytes: of the
text only the stretch that it holds is tokenised again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import contents
from corpus_fixtures import write_jsonl, write_queries
from pipeline import CPU, Pipeline

from inflcli.artifacts import candidates
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import PrepareConfig, TfidfConfig
from inflcli.corpus.encode import Encoder
from inflcli.stages import tfidf_filter, tokenising
from inflcli.stages.prepare import prepare

WORDS = ["sun", "star", "water", "river", "stone", "green", "light", "moon", "two", "under", "over"]
DOCUMENTS = 150
MENDING = replace(CPU, overwrite=True)


def text_of(number: int) -> str:
    return " ".join(WORDS[(number * k) % len(WORDS)] for k in range(1, 4 + number % 9))


@pytest.fixture
def text(tmp_path):
    return write_jsonl(tmp_path / "text.jsonl", [text_of(n) for n in range(DOCUMENTS)])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of 3 sequences, 48 rows of the other arrays, 1,536 bytes of records."""
    monkeypatch.setattr(tokenising, "CHUNK_ROWS", 3)
    monkeypatch.setattr(tokenising, "WAYPOINT_SEQUENCES", 4)
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 5)
    monkeypatch.setattr(candidates, "_CHUNK_BYTES", 2 * 8 * 5)


@pytest.fixture(params=["packed", "per line"])
def make(request, tiny_model, text, tmp_path):
    """Make the corpus, or mend it; returns its folder."""
    config = PrepareConfig(seq_len=16, per_line=request.param == "per line")

    def run(runtime=MENDING) -> Path:
        prepare([str(text)], str(tiny_model("gpt2")), tmp_path / "corpus", config, runtime)
        return tmp_path / "corpus"

    return run


@pytest.fixture
def tokenised(monkeypatch):
    """How many documents were tokenised."""
    seen: list[int] = []
    encode = Encoder.encode

    def counted(self, pieces):
        seen.append(len(pieces))
        return encode(self, pieces)

    monkeypatch.setattr(Encoder, "encode", counted)
    return seen


def same(folder: Path, before: dict) -> bool:
    """All files but the manifest, whose timings differ."""
    after = contents(folder)
    return {name: after[name] for name in after if name != "manifest.json"} == {
        name: before[name] for name in before if name != "manifest.json"
    }


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_file_by_itself(make):
    folder = make()
    before = contents(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for number, name in enumerate(manifest["files"]):
        flip(folder / name) if number % 2 else (folder / name).unlink()
        make()
        assert same(folder, before), name
        again = json.loads((folder / "manifest.json").read_text())
        assert [again[key] for key in ("counts", "details", "files")] == [
            manifest[key] for key in ("counts", "details", "files")
        ]


@pytest.mark.parametrize("chunk", [0, 3, 9])
def test_only_its_stretch_is_tokenised(make, tokenised, chunk):
    folder = make()
    whole = sum(tokenised)
    assert whole == DOCUMENTS
    tokenised.clear()
    flip(folder / f"tokens/c/{chunk}/0")
    make()
    # From a waypoint at most four sequences before, to the end of a batch after three.
    assert 0 < sum(tokenised) < whole / 3


def test_several_far_apart(make, tokenised):
    folder = make()
    before = contents(folder)
    last = max(int(path.parent.name) for path in folder.glob("tokens/c/*/0"))
    tokenised.clear()
    for chunk in (1, last // 2, last):
        flip(folder / f"tokens/c/{chunk}/0")
    flip(folder / "waypoints/c/1")
    make()
    assert same(folder, before)
    assert sum(tokenised) < DOCUMENTS


@pytest.mark.parametrize("allowed", range(3))
def test_stopped_in_between(make, monkeypatch, allowed):
    folder = make()
    before = contents(folder)
    for chunk in (1, 5, 9):
        flip(folder / f"tokens/c/{chunk}/0")
    left, commit = [allowed], ArtifactWriter.commit

    def stopped(self, progress, written=None):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        commit(self, progress, written)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            make()
    make(CPU)
    assert same(folder, before)


@pytest.mark.parametrize("scorer", ["paper", "okapi"])
def test_candidates(tiny_model, text, tmp_path, monkeypatch, scorer):
    """Of six queries, two a chunk, only those in damaged chunks are searched for again."""
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path)
    corpus = pipeline.prepare(text)
    asked = [(f"The {word}", f" {WORDS[n]}") for n, word in enumerate(WORDS[:6])]
    queries = write_queries(tmp_path / "q.jsonl", *asked)
    searched: list[int] = []
    paper, bm25 = tfidf_filter._paper, tfidf_filter._bm25
    for name, search in (("_paper", paper), ("_bm25", bm25)):

        def counted(writer, reader, tokens, config, runtime, search=search):
            searched.append(len(tokens))
            return search(writer, reader, tokens, config, runtime)

        monkeypatch.setattr(tfidf_filter, name, counted)

    def make(runtime=MENDING):
        config = TfidfConfig(top=5, scorer=scorer)
        tfidf_filter.tfidf_filter(corpus, queries, tmp_path / "candidates", config, runtime)

    make()
    folder = tmp_path / "candidates"
    before = contents(folder)
    for damaged in (["ids/c/1/0"], ["scores/c/2/0", "ids/c/0/0"], ["ids/zarr.json"]):
        for name in damaged:
            flip(folder / name)
        make()
        assert same(folder, before)
    assert searched == [6, 2, 4, 6]
