"""An artifact is published whole or not at all: interrupted, refused or out of space, nothing that
was there is lost, and what is not complete, current and sound is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_fixtures import DOCUMENTS, data_of, environment, inflcli_here, make_corpus, write_jsonl

from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact, partial_path
from inflcli.artifacts.manifest import Identity, Input
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.errors import BadInput, CorruptArtifact, MissingArtifact, StaleArtifact


def _identity(value: int = 1, content: str = "x") -> Identity:
    return Identity("prepare", {"value": value}, {"text": Input(content, "t.jsonl")})


def _write(path: Path, value: int = 1, *, overwrite: bool = False) -> Artifact:
    writer = ArtifactWriter.begin(path, _identity(value), overwrite=overwrite)
    assert writer is not None
    (writer.folder / "data").write_text(str(value))
    return writer.finish()


def test_complete_or_partial(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(MissingArtifact, match="no artifact"):
        Artifact.open(path, "prepare")
    writer = ArtifactWriter.begin(path, _identity(), overwrite=False)
    assert writer is not None
    writer.commit({"done": 3})
    with pytest.raises(MissingArtifact, match="not finished"):
        Artifact.open(path, "prepare")
    again = ArtifactWriter.begin(path, _identity(), overwrite=False)
    assert again is not None and again.progress == {"done": 3}
    again.finish()
    assert Artifact.open(path, "prepare").fingerprint == _identity().digest()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert [one.name for one in path.iterdir()] == ["manifest.json"]
    assert ArtifactWriter.begin(path, _identity(), overwrite=False) is None


def test_other_settings_or_inputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _write(path)
    with pytest.raises(StaleArtifact, match="value was 1, now 2"):
        ArtifactWriter.begin(path, _identity(2), overwrite=False)
    with pytest.raises(StaleArtifact, match=r"input text has changed \(t.jsonl\)"):
        ArtifactWriter.begin(path, _identity(1, "y"), overwrite=False)
    writer = ArtifactWriter.begin(path, _identity(2), overwrite=True)
    assert writer is not None
    assert (path / "data").read_text() == "1"  # until the new one is whole
    writer.finish()
    assert not (path / "data").exists()


def test_an_unfinished_run_with_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = ArtifactWriter.begin(path, _identity(), overwrite=False)
    assert ArtifactWriter.begin(path, _identity(2), overwrite=False) is not None  # got nowhere
    writer = ArtifactWriter.begin(path, _identity(), overwrite=False)
    assert writer is not None
    writer.commit({"done": 1})
    with pytest.raises(StaleArtifact, match="unfinished run with other settings: value was 1"):
        ArtifactWriter.begin(path, _identity(2), overwrite=False)
    other = ArtifactWriter.begin(path, _identity(2), overwrite=True)
    assert other is not None and other.progress == {}


@pytest.mark.parametrize("moment", ["digest", "manifest", "rename"])
def test_interrupted_while_finishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "a"
    writer = ArtifactWriter.begin(path, _identity(), overwrite=False)
    assert writer is not None
    (writer.folder / "data").write_text("kept")
    writer.commit({"done": 7})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "digest":
            patch.setattr(files, "file_digest", interrupt)
        elif moment == "manifest":
            patch.setattr(files, "write_bytes", interrupt)
        else:
            patch.setattr(ArtifactWriter, "_publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    again = ArtifactWriter.begin(path, _identity(), overwrite=False)
    if moment == "rename":
        assert again is None  # it was whole: only its name was missing
    else:
        assert again is not None and again.progress == {"done": 7}
        again.finish()
    assert sorted(Artifact.open(path, "prepare").manifest.files) == ["data"]


def test_what_is_not_an_artifact_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BadInput, match="is not an artifact"):
        ArtifactWriter.begin(tmp_path / "mine", _identity(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _write(path)
    manifest = (path / "manifest.json").read_text()
    (path / "data").write_text("11")
    with pytest.raises(CorruptArtifact, match="data has 2 bytes instead of 1"):
        Artifact.open(path, "prepare")
    (path / "data").unlink()
    with pytest.raises(CorruptArtifact, match="data is missing"):
        Artifact.open(path, "prepare")
    for old, new, words in (
        ('"schema": 1', '"schema": 99', "schema 99"),
        ('"value": 1', '"value": 2', "was edited"),
        ('"counts"', '"count"', "is not a manifest"),
    ):
        (path / "manifest.json").write_text(manifest.replace(old, new))
        with pytest.raises(CorruptArtifact, match=words):
            Artifact.open(path, "prepare")
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(BadInput, match="written by inflcli prepare"):
        Artifact.open(path, "scan")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a read-only folder that root has")
def test_read_only_output(tiny_tokenizer: Path, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)
    done = inflcli_here(
        "prepare", "--tokenizer", tiny_tokenizer, "--input", text, "--out", "/proc/nowhere/corpus"
    )
    assert done.returncode == 2
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr


def test_no_space_left(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 20 kB; with the limit gone, the same command finishes."""
    text = write_jsonl(tmp_path / "text.jsonl", [f"{i} " + " ".join(DOCUMENTS) for i in range(400)])
    args = ["prepare", "--tokenizer", str(tiny_tokenizer), "--input", str(text), "--seq-len", "16"]
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from inflcli.cli import main; main()"
    )
    limited = subprocess.run(
        [sys.executable, "-c", code, *args, "--out", str(tmp_path / "corpus")],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert limited.returncode == 5, limited.stderr
    assert "no space left" in limited.stderr and "Traceback" not in limited.stderr
    assert not (tmp_path / "corpus").exists()
    done = inflcli_here(*args, "--out", tmp_path / "corpus", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fresh"] is False
    whole = make_corpus(text, tiny_tokenizer, tmp_path / "whole", seq_len=16)
    assert data_of(tmp_path / "corpus") == data_of(whole.artifact.path)
    assert partial_path(tmp_path / "corpus").exists() is False
