"""Preconditioned queries on disk.

`queries.json` lists the queries with their tokens and log-probabilities. `modules/NAME.safetensors`
holds one module's matrices for all queries: `left` [P, K], `right` [M, K] and `owner` [K] (column
k belongs to query owner[k], so that ranks may differ), or `dense` [Q, P, M]; in bfloat16 where the
precision is fast, which computes no more.

`queries.json` also says what was kept of a query's squared norm, as a whole and by module, in how
many columns and bytes, and out of how many components that were found.

While the stage runs, each chunk of queries has files of its own; `merge_chunks` joins them, and
they go when the artifact is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact


def merge_chunks(folder: Path, names: list[str], chunks: int) -> None:
    """Join the files of the chunks into one file a module; a single chunk's only move."""
    (folder / "modules").mkdir(exist_ok=True)
    for name in names:
        paths = [chunk_path(folder, number, name) for number in range(chunks)]
        whole = folder / "modules" / f"{name}.safetensors"
        if chunks == 1:
            # It is not there any more if an earlier run was stopped right after this.
            if paths[0].exists():
                paths[0].replace(whole)
            continue
        parts = [files.read_tensors(path) for path in paths]
        joined = {
            key: torch.cat([part[key] for part in parts], dim=0 if key in ("dense", "owner") else 1)
            for key in parts[0]
        }
        files.write_tensors(whole, joined, {})


def chunk_path(folder: Path, number: int, name: str) -> Path:
    """The file of what one module keeps of a chunk of queries."""
    return folder / f"chunk.{number:05d}.{name}.safetensors"


def modules_in(names: Iterable[str]) -> set[str]:
    """The modules whose files, by their relative paths, are among `names`."""
    found = (re.fullmatch(r"modules/(.+)\.safetensors", name) for name in names)
    return {match[1] for match in found if match}


def write_queries(folder: Path, queries: list[dict[str, Any]]) -> None:
    files.write_json(folder / "queries.json", queries)


def read_queries_json(folder: Path) -> list[dict[str, Any]]:
    return list(files.read_json(folder / "queries.json"))


@dataclass(frozen=True)
class QueriesReader:
    """A complete set of preconditioned queries."""

    artifact: Artifact
    queries: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> QueriesReader:
        artifact = Artifact.open(path, "precondition")
        return cls(artifact, read_queries_json(path))

    @property
    def ids(self) -> list[str]:
        return [str(query["id"]) for query in self.queries]

    @property
    def modules(self) -> list[dict[str, Any]]:
        return list(self.artifact.manifest.details["modules"])

    def matrices(self, name: str) -> dict[str, Tensor]:
        """`left`, `right`, `owner`, or `dense`, of one module."""
        return files.read_tensors(self.artifact.path / "modules" / f"{name}.safetensors")
