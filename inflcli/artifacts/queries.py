"""Preconditioned queries on disk.

`queries.json` lists the queries with their tokens and log-probabilities. `modules/NAME.safetensors`
holds one module's matrices for all queries: `left` [P, K], `right` [M, K] and `owner` [K] (column
k belongs to query owner[k], so that ranks may differ), or `dense` [Q, P, M].

While the stage runs, each chunk of queries is one file of its own; `merge_chunks` joins them, and
they go when the artifact is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact


def chunk_path(folder: Path, number: int) -> Path:
    return folder / f"chunk.{number:05d}.safetensors"


def merge_chunks(folder: Path, names: list[str], chunks: int) -> None:
    """Join the files of the chunks into one file a module."""
    (folder / "modules").mkdir(exist_ok=True)
    for name in names:
        parts = [_read_module(chunk_path(folder, number), name) for number in range(chunks)]
        joined = {
            key: torch.cat([part[key] for part in parts], dim=0 if key in ("dense", "owner") else 1)
            for key in parts[0]
        }
        files.write_tensors(folder / "modules" / f"{name}.safetensors", joined, {})


def _read_module(path: Path, name: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as handle:
        wanted = [key for key in handle.keys() if key.rpartition(":")[0] == name]  # noqa: SIM118
        return {key.rpartition(":")[2]: handle.get_tensor(key) for key in wanted}


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
