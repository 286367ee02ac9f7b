"""Shared fixtures: a tiny byte-level tokenizer, and tiny random models of several shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import SHAPES, TEXTS, save_model, save_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Sums depend on the number of threads in their last bits: a child process must have ours.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here survives a power loss, and fsync takes more time than the rest of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model(shape)`: a model folder of that shape, tokenizer included. See `tiny.SHAPES`."""
    made: dict[str, Path] = {}

    def make(shape: str) -> Path:
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp(shape)
            save_model(made[shape], SHAPES[shape])
        return made[shape]

    return make


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of documents of different lengths."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    lines = [json.dumps({"id": f"doc{i}", "text": text}) for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A query file."""
    path = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    pairs = [
        ("The sun is", " a star."),
        ("Water boils at", " one hundred"),
        ("Two and two", " four"),
    ]
    lines = [
        json.dumps({"id": f"q{i}", "prompt": prompt, "completion": completion})
        for i, (prompt, completion) in enumerate(pairs)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
