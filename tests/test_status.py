"""status tells complete, partial, stale and corrupt artifacts apart, and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from corpus_fixtures import (
    DOCUMENTS,
    inflcli,
    inflcli_here,
    make_corpus,
    write_jsonl,
    write_queries,
)

from inflcli.config import Runtime, TfidfConfig
from inflcli.errors import MissingArtifact
from inflcli.stages import prepare as prepare_stage
from inflcli.stages import tokenising
from inflcli.stages.status import status
from inflcli.stages.tfidf_filter import tfidf_filter


@pytest.fixture
def run(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A corpus and candidates in `run`, made from files beside it."""
    folder = tmp_path / "run"
    folder.mkdir()
    text = write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)
    make_corpus(text, tiny_tokenizer, folder / "corpus", seq_len=16)
    queries = write_queries(tmp_path / "q.jsonl", ("The", " river"))
    command = ("inflcli", "tfidf-filter", "--corpus", "run/corpus")
    tfidf_filter(
        folder / "corpus", queries, folder / "candidates", TfidfConfig(), Runtime(command=command)
    )
    return folder


def _states(run: Path, **options: Any) -> dict[str, str]:
    return {one["name"]: one["state"] for one in status(run, **options)["artifacts"]}


def _reasons(run: Path, name: str) -> str:
    (one,) = (one for one in status(run)["artifacts"] if one["name"] == name)
    return "; ".join(one["reasons"])


def test_complete_in_the_pipelines_order(run: Path) -> None:
    assert list(_states(run).items()) == [("corpus", "complete"), ("candidates", "complete")]
    found = status(run)["artifacts"]
    assert found[0]["counts"]["documents"] == len(DOCUMENTS)
    assert not found[0]["notes"] and not found[1]["notes"]
    size = sum(file.stat().st_size for file in (run / "corpus").rglob("*") if file.is_file())
    assert found[0]["bytes"] == size


def test_stale_by_its_text_and_what_follows_from_it(run: Path) -> None:
    write_jsonl(run.parent / "text.jsonl", DOCUMENTS[:2])
    assert _states(run) == {"corpus": "stale", "candidates": "stale"}
    assert "text has changed" in _reasons(run, "corpus")
    assert "corpus is stale" in _reasons(run, "candidates")


def test_stale_by_its_queries(run: Path) -> None:
    write_queries(run.parent / "q.jsonl", ("A", " moon"))
    assert _states(run) == {"corpus": "complete", "candidates": "stale"}
    assert "queries has changed" in _reasons(run, "candidates")


def test_stale_by_another_corpus(run: Path, tiny_tokenizer: Path) -> None:
    shutil.rmtree(run / "corpus")
    make_corpus(run.parent / "text.jsonl", tiny_tokenizer, run / "corpus", seq_len=8)
    assert _states(run) == {"corpus": "complete", "candidates": "stale"}
    assert "corpus has changed" in _reasons(run, "candidates")


def test_inputs_that_are_gone_are_only_noted(run: Path) -> None:
    (run.parent / "text.jsonl").unlink()
    (run.parent / "q.jsonl").unlink()
    assert set(_states(run).values()) == {"complete"}
    notes = [note for one in status(run)["artifacts"] for note in one["notes"]]
    assert len(notes) == 2 and all("not checked" in note for note in notes)


def test_a_run_may_be_moved(run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    assert set(_states(moved).values()) == {"complete"}
    assert not status(moved)["artifacts"][1]["notes"]


def test_partial_says_how_far(
    run: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_stage, "COMMIT_SEQUENCES", 1)
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 2)
    text = write_jsonl(run.parent / "other.jsonl", DOCUMENTS * 2)
    text.write_text(text.read_text() + "{")
    with pytest.raises(Exception, match="not JSON"):
        make_corpus(text, tiny_tokenizer, run / "second", seq_len=8)
    assert _states(run)["second.partial"] == "partial"
    (one,) = (one for one in status(run)["artifacts"] if one["name"] == "second.partial")
    assert one["stage"] == "prepare"
    assert one["progress"]["sequences"] > 0
    assert one["progress"]["bytes_read"] < one["progress"]["bytes_total"]


def test_corrupt(run: Path) -> None:
    chunk = run / "candidates" / "ids" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1])
    assert _states(run)["candidates"] == "corrupt"
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert _states(run)["candidates"] == "complete"  # the size alone does not show it
    assert _states(run, verify=True)["candidates"] == "corrupt"
    (run / "corpus" / "manifest.json").write_text("{")
    assert _states(run)["corpus"] == "corrupt"


def test_the_command(run: Path) -> None:
    shown = inflcli("status", run)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "complete" in shown.stdout and "prepare" in shown.stdout
    machine = inflcli_here("status", run, "--json")
    assert json.loads(machine.stdout)["artifacts"][0]["state"] == "complete"
    write_queries(run.parent / "q.jsonl", ("A", " moon"))
    stale = inflcli_here("status", run)
    assert stale.returncode == 0
    assert "mend it with: inflcli tfidf-filter --corpus run/corpus --overwrite" in stale.stdout
    (run / "corpus" / "zarr.json").unlink()
    assert inflcli_here("status", run, "--json").returncode == 4


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="no run"):
        status(tmp_path / "missing")
    with pytest.raises(MissingArtifact, match="no artifact"):
        status(tmp_path)
