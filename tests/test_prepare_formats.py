"""A corpus does not depend on the format that its text came in, and a bad record is named by file
and line, refused, or counted with --skip-bad."""

from __future__ import annotations

import gzip
import json
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from corpus_fixtures import DOCUMENTS, make_corpus, rows_of, write_jsonl

from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import PrepareConfig, Runtime
from inflcli.corpus.sources import discover
from inflcli.errors import BadInput
from inflcli.stages.prepare import prepare

SETTINGS = {"seq_len": 16}


@pytest.fixture
def expected(tiny_tokenizer: Path, tmp_path: Path) -> list[list[int]]:
    text = write_jsonl(tmp_path / "expected.jsonl", DOCUMENTS)
    return rows_of(make_corpus(text, tiny_tokenizer, tmp_path / "expected", **SETTINGS))


def _zst(path: Path, *frames: bytes) -> Path:
    import zstandard

    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(one) for one in frames))
    return path


def _write(kind: str, folder: Path) -> Path:
    plain = write_jsonl(folder / "plain.jsonl", DOCUMENTS)
    data = plain.read_bytes()
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
        return folder / "a.jsonl.gz"
    if kind == "jsonl.zst":
        return _zst(folder / "a.jsonl.zst", data[:100], data[100:])
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({"text": DOCUMENTS, "id": [f"d{i}" for i in range(len(DOCUMENTS))]})
        parquet.write_table(table, folder / "a.parquet", row_group_size=2)
        return folder / "a.parquet"
    if kind == "saved dataset":
        import datasets

        saved = datasets.Dataset.from_dict({"text": DOCUMENTS})
        datasets.DatasetDict({"train": saved}).save_to_disk(str(folder / "saved"))
        return folder / "saved"
    texts = folder / "texts"
    (texts / "sub").mkdir(parents=True)
    (texts / ".hidden.txt").write_text("not this")
    (texts / "image.png").write_bytes(b"\xff\xfe")
    for number, text in enumerate(DOCUMENTS):
        name = f"{number}.txt" if number < 4 else "sub/4.txt.gz"
        content = text.encode()
        (texts / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return texts


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "saved dataset", "folder"])
def test_formats_agree(
    tiny_tokenizer: Path, tmp_path: Path, expected: list[list[int]], kind: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    corpus = make_corpus(_write(kind, folder), tiny_tokenizer, tmp_path / "corpus", **SETTINGS)
    assert rows_of(corpus) == expected


def test_lines_of_a_text_file(tiny_tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_bytes(b"\xef\xbb\xbfone bird\r\n\n  \ntwo birds\nthree birds")
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=32, per_line=True)
    assert [corpus.sources(i)[0].line for i in range(3)] == [1, 4, 5]
    assert [corpus.sources(i)[0].document_id for i in range(3)] == [
        f"{text}:1", f"{text}:4", f"{text}:5",
    ]  # fmt: skip
    assert [corpus.sources(i)[0].char_end for i in range(3)] == [8, 9, 11]


def test_metadata_and_ids_are_kept(tiny_tokenizer: Path, tmp_path: Path) -> None:
    record = {"text": "one bird", "id": 7, "metadata": {"source": "s"}, "url": "u", "big": [1] * 9}
    text = tmp_path / "a.jsonl"
    text.write_text(json.dumps(record))
    (source,) = make_corpus(text, tiny_tokenizer, tmp_path / "corpus").sources(0)
    assert (source.document_id, source.metadata) == ("7", {"source": "s", "url": "u"})


BAD_LINES = {
    "not JSON": b'{"text": "a"',
    "not a JSON object": b'["text"]',
    "no 'text'": b'{"txt": "a"}',
    "is not a string": b'{"text": 3}',
    "invalid UTF-8": b'{"text": "\xff"}',
    "surrogate": b'{"text": "\\ud800"}',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_bad_line_is_named_or_counted(tiny_tokenizer: Path, tmp_path: Path, reason: str) -> None:
    good = b'{"text": "one bird"}'
    text = tmp_path / "a.jsonl"
    text.write_bytes(b"\n".join([good, b"", BAD_LINES[reason], good]))
    with pytest.raises(BadInput, match=reason) as caught:
        make_corpus(text, tiny_tokenizer, tmp_path / "corpus")
    assert f"{text}:3:" in caught.value.message
    assert not list(tmp_path.glob("corpus*"))
    corpus = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", skip_bad=True)
    assert corpus.artifact.manifest.counts["bad"] == 1
    assert corpus.artifact.manifest.counts["documents"] == 2
    assert f"{text}:3:" in corpus.artifact.manifest.details["bad_records"][0]


def test_bad_text_file_is_named_by_its_line(tiny_tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(BadInput, match=r"a\.txt:3: invalid UTF-8"):
        make_corpus(text, tiny_tokenizer, tmp_path / "corpus")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_truncated_compression_is_refused(
    tiny_tokenizer: Path, tmp_path: Path, ending: str
) -> None:
    data = write_jsonl(tmp_path / "plain.jsonl", DOCUMENTS * 50).read_bytes()
    path = tmp_path / f"a.jsonl{ending}"
    if ending == ".gz":
        path.write_bytes(gzip.compress(data))
    else:
        _zst(path, data)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="truncated"):
        make_corpus(path, tiny_tokenizer, tmp_path / "corpus", skip_bad=True)


def test_what_input_may_name(tmp_path: Path) -> None:
    folder = _write("folder", tmp_path)
    assert [Path(one.name).name for one in discover([str(folder)])] == [
        "0.txt", "1.txt", "2.txt", "3.txt", "4.txt.gz",
    ]  # fmt: skip
    assert len(discover([str(folder)], include=["[01].*"])) == 2
    (tmp_path / "code.py").write_text("print()")
    assert [one.kind for one in discover([str(tmp_path / "code.py")])] == ["text"]
    for missing in ("nothing.jsonl", "./nothing", str(tmp_path / "nothing"), "owner/nothing"):
        with pytest.raises(BadInput, match="no file or folder"):
            discover([missing])
    with pytest.raises(BadInput, match="holds no"):
        discover([str(folder)], include=["*.py"])


def test_include_without_a_folder(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(BadInput, match="no input is a folder"):
        discover([str(text)], include=["*.py"])


def test_hub_dataset(
    tiny_tokenizer: Path,
    tmp_path: Path,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the hub's answers stood in for: pinned to a commit, streamed, any name and config."""
    import datasets
    import huggingface_hub

    asked: list[object] = []

    def load(*args: object, **options: object) -> object:
        asked.append((args, options["split"], options["revision"], options["streaming"]))
        return datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset()

    def info(name: str, **_: object) -> object:
        return SimpleNamespace(sha="abc" if name == "owner/name" else None)

    monkeypatch.setattr(huggingface_hub, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    out = tmp_path / "corpus"
    config = PrepareConfig(seq_len=16, split="test")
    prepare(["owner/name:config"], str(tiny_tokenizer), out, config, Runtime())
    corpus = CorpusReader.open(out)
    assert rows_of(corpus) == expected
    assert asked == [(("owner/name", "config"), "test", "abc", True)]
    assert corpus.sources(0)[0].document_id == "owner/name:config:1"


@pytest.mark.parametrize(
    ("package", "kind"),
    [("zstandard", "jsonl.zst"), ("pyarrow", "parquet"), ("datasets", "saved dataset")],
)
def test_missing_package_is_named(
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    kind: str,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = _write(kind, folder)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=f"needs the package {package}") as caught:
        make_corpus(path, tiny_tokenizer, tmp_path / "corpus", **SETTINGS)
    assert caught.value.hint is not None and "pip install" in caught.value.hint


def test_dates_in_a_table_are_kept_as_text(tiny_tokenizer: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {"text": ["one bird"], "metadata": [{"day": date(2020, 1, 2), "n": 3}]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    corpus = make_corpus(tmp_path / "a.parquet", tiny_tokenizer, tmp_path / "corpus")
    assert corpus.sources(0)[0].metadata == {"day": "2020-01-02", "n": 3}


def test_parquet_without_the_column(tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.mkdir()
    with pytest.raises(BadInput, match="no column 'body'") as caught:
        make_corpus(_write("parquet", path), tiny_tokenizer, tmp_path / "c", text_field="body")
    assert caught.value.hint is not None and "text" in caught.value.hint
