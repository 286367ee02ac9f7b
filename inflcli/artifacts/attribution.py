"""Attributions: `token_scores` [query, rank, module, token] of the top sequences of each query.

Ranks 0..k-1 are the most positive sequences, k..2k-1 the most negative, strongest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from inflcli.artifacts import groups
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.groups import ArraySpec


def create(
    folder: Path, query_ids: list[str], modules: list[dict[str, Any]], ranks: int, tokens: int
) -> zarr.Group:
    """Open the group for writing; `ranks` counts both signs."""
    queries, names = len(query_ids), [module["name"] for module in modules]
    pair = ("query", "rank")
    arrays = {
        "token_scores": ArraySpec(
            (queries, ranks, len(names), tokens),
            (1, ranks, len(names), tokens),
            "float32",
            (*pair, "module", "token"),
        ),
        "sequences": ArraySpec((queries, ranks), (queries, ranks), "int64", pair, -1),
        "scores": ArraySpec((queries, ranks), (queries, ranks), "float32", pair, np.nan),
    }
    attributes = {
        "query_ids": query_ids,
        "modules": modules,
        "token": "the influence at token t comes from predicting its successor, token t + 1",
        "ranks": "the first half most positive first, the second half most negative first",
    }
    return groups.create_group(folder, arrays, attributes)


def write(
    group: zarr.Group,
    query: int,
    token_scores: NDArray[np.float32],
    sequences: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write one query: token_scores [ranks, module, token], and what each rank is."""
    groups.array(group, "token_scores")[query] = token_scores
    groups.array(group, "sequences")[query] = sequences
    groups.array(group, "scores")[query] = scores


@dataclass(frozen=True)
class AttributionReader:
    """A complete attribution."""

    artifact: Artifact
    group: zarr.Group

    @classmethod
    def open(cls, path: Path) -> AttributionReader:
        artifact = Artifact.open(path, "attribute")
        return cls(artifact, groups.open_group(artifact))

    @property
    def modules(self) -> list[dict[str, Any]]:
        """The modules of the third axis, as their fields."""
        return list(self.group.attrs["modules"])  # type: ignore[arg-type]

    def sequences(self) -> NDArray[np.int64]:
        """Sequence numbers [Q, ranks], -1 where there are fewer."""
        return groups.read(self.group, "sequences")

    def scores(self) -> NDArray[np.float32]:
        """The scan's scores [Q, ranks]."""
        return groups.read(self.group, "scores")

    def token_scores(self, query: int) -> NDArray[np.float32]:
        """[ranks, module, token] of one query."""
        return groups.read(self.group, "token_scores", query)
