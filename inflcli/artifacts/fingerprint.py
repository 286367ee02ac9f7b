"""Fingerprints of what comes from outside: model weights, tokenizers, text and query files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from inflcli.artifacts.files import file_digest
from inflcli.artifacts.manifest import Input

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)


def of_files(paths: list[Path], label: str) -> Input:
    """One fingerprint over the names and contents of several files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return Input(digest.hexdigest()[:32], label)


def of_model(folder: Path, label: str) -> Input:
    """Weights and config of a model folder. Cost: one sequential read of the weights."""
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    return of_files([folder / "config.json", *weights], label)


def of_tokenizer(folder: Path, label: str) -> Input:
    """The vocabulary and merge files of a tokenizer; the same wherever the folder lies."""
    first = [folder / "tokenizer.json"]
    if not first[0].is_file():
        first = sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern)})
    return of_files(first, label)
