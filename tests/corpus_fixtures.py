"""Helpers of the corpus tests: small texts, a run of prepare, the programme as a subprocess."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from inflcli import console
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import PrepareConfig, Runtime
from inflcli.stages.prepare import prepare

DOCUMENTS = [
    "The river runs under the old stone bridge.",
    "Water boils at one hundred degrees.\n\nNear the sea, that is.",
    "Grüße aus Köln: 水は百度で沸騰する 🙂 naïve café.",
    "A bird sings over the house by the road, and two moons rise.",
    "x",
]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_queries(path: Path, *pairs: tuple[str, str]) -> Path:
    lines = [
        json.dumps({"id": f"q{i}", "prompt": prompt, "completion": completion})
        for i, (prompt, completion) in enumerate(pairs)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_corpus(
    inputs: Path | list[Path], tokenizer: Path, out: Path, **settings: Any
) -> CorpusReader:
    paths = inputs if isinstance(inputs, list) else [inputs]
    config = PrepareConfig(**settings)
    prepare([str(path) for path in paths], str(tokenizer), out, config, Runtime())
    return CorpusReader.open(out)


def tokens_of(tokenizer: Path, text: str) -> list[int]:
    """What transformers itself gives, without special tokens."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return list(loaded(text, add_special_tokens=False)["input_ids"])


def eos_of(tokenizer: Path) -> int:
    return int(AutoTokenizer.from_pretrained(tokenizer).eos_token_id)


def rows_of(corpus: CorpusReader) -> list[list[int]]:
    """Every sequence without its padding, which must be zeros."""
    block = corpus.tokens(0, corpus.n_sequences)
    rows = []
    for row, length in zip(block, corpus.lengths, strict=True):
        assert not np.any(row[length:])
        rows.append(row[:length].tolist())
    return rows


def data_of(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact but its manifest, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def inflcli(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the programme as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "inflcli", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=120,
        check=False,
    )


def inflcli_here(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """The same within this process, which saves seconds of importing."""
    from inflcli.cli import app

    out, err, code = io.StringIO(), io.StringIO(), 0
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app([str(one) for one in args])
    except SystemExit as exit:
        code = int(exit.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
        console.set_level(console.NORMAL)
    return subprocess.CompletedProcess(["inflcli", *args], code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """The environment with this checkout importable and the hub out of reach."""
    here = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": here, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
