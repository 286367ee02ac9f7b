"""An interrupted prepare goes on where it was, and yields the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from corpus_fixtures import data_of, environment, make_corpus, write_jsonl

from inflcli.stages import prepare as stage
from inflcli.stages import tokenising


def _texts(count: int) -> list[str]:
    draw = random.Random(0)
    words = ["river", "stone", "green", "light", "moon", "hundred", "Köln", "水"]
    return [" ".join(draw.choice(words) for _ in range(draw.randint(0, 60))) for _ in range(count)]


@pytest.mark.parametrize("per_line", [False, True])
@pytest.mark.parametrize("format", ["jsonl", "txt"])
def test_interrupted_between_chunks(
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    per_line: bool,
    format: str,
) -> None:
    if format == "jsonl":
        inputs = [write_jsonl(tmp_path / f"{i}.jsonl", _texts(100)) for i in range(2)]
    else:
        inputs = [tmp_path / "a.txt", tmp_path / "b.txt"]
        for path in inputs:
            path.write_text("\n".join(_texts(100)))
    settings: dict[str, Any] = {"seq_len": 16, "per_line": per_line}
    monkeypatch.setattr(stage, "COMMIT_SEQUENCES", 10)
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 2)
    monkeypatch.setattr(tokenising, "pieces_of", _small_pieces)
    # A text file is one document of some pieces, which the interruptions then fall between.
    often = 5 if format == "txt" and not per_line else 60
    whole = make_corpus(inputs, tiny_tokenizer, tmp_path / "whole", **settings)
    consumed: list[tokenising.Position] = []
    runs = 0
    while True:
        runs += 1
        with monkeypatch.context() as patch:
            patch.setattr(tokenising, "_items", _interrupted_after(often, consumed))
            try:
                make_corpus(inputs, tiny_tokenizer, tmp_path / "resumed", **settings)
                break
            except KeyboardInterrupt:
                assert not (tmp_path / "resumed").exists()
    assert runs > 2
    # At most the chunk in flight is done again.
    assert len(consumed) <= len(set(consumed)) + runs * often
    assert data_of(tmp_path / "resumed") == data_of(tmp_path / "whole")
    assert whole.n_sequences > 100


_items = tokenising._items
_pieces_of = tokenising.pieces_of


def _small_pieces(document: Any) -> Any:
    return _pieces_of(document, limit=1500)


def _interrupted_after(count: int, consumed: list[tokenising.Position]) -> Any:
    def items(*args: Any) -> Any:
        for number, item in enumerate(_items(*args)):
            if number == count:
                raise KeyboardInterrupt
            consumed.append(item.after)
            yield item

    return items


def test_killed(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """SIGKILL at a moment of the system's choosing."""
    text = write_jsonl(tmp_path / "text.jsonl", _texts(4000))
    command = [sys.executable, "-m", "inflcli", "prepare", "--tokenizer", str(tiny_tokenizer)]
    command += [
        "--input",
        str(text),
        "--seq-len",
        "8",
        "--quiet",
        "--out",
        str(tmp_path / "killed"),
    ]
    progress = tmp_path / "killed.partial" / "progress.json"
    process = subprocess.Popen(command, env=environment())
    deadline = time.monotonic() + 60
    while not progress.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it had finished before it could be killed"
    subprocess.run(command, env=environment(), check=True)
    make_corpus(text, tiny_tokenizer, tmp_path / "whole", seq_len=8)
    assert data_of(tmp_path / "killed") == data_of(tmp_path / "whole")


def test_stopped_by_a_bad_line_it_goes_on_with_skip_bad(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "COMMIT_SEQUENCES", 10)
    monkeypatch.setattr(tokenising, "BATCH_PIECES", 7)
    text = write_jsonl(tmp_path / "text.jsonl", _texts(100))
    text.write_text(text.read_text() + "not JSON\n" + '{"text": "the end"}\n')
    from inflcli.errors import BadInput

    with pytest.raises(BadInput, match=":101: not JSON"):
        make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=16)
    assert (tmp_path / "corpus.partial" / "progress.json").is_file()
    resumed = make_corpus(text, tiny_tokenizer, tmp_path / "corpus", seq_len=16, skip_bad=True)
    whole = make_corpus(text, tiny_tokenizer, tmp_path / "whole", seq_len=16, skip_bad=True)
    assert data_of(tmp_path / "corpus") == data_of(tmp_path / "whole")
    assert resumed.artifact.manifest.counts == whole.artifact.manifest.counts
