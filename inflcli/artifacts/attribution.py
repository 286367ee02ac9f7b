"""Attributions: `token_scores` [query, rank, module, token] of the top sequences of each query.

Where they were asked for, two counterfactual attributions besides, `output_tokens` and
`input_tokens` [query, rank, token] (see `model.direction`).

Ranks 0..k-1 are the most positive sequences, k..2k-1 the most negative, strongest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from inflcli.artifacts import groups
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.groups import ArraySpec

OUTPUTS, INPUTS = EFFECTS = ("output_tokens", "input_tokens")


def create(
    folder: Path,
    query_ids: list[str],
    modules: list[dict[str, Any]],
    ranks: int,
    tokens: int,
    *,
    counterfactual: bool,
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
    if counterfactual:
        shape = (queries, ranks, tokens)
        spec = ArraySpec(shape, (1, *shape[1:]), "float32", (*pair, "token"))
        arrays |= dict.fromkeys(EFFECTS, spec)
    attributes = {
        "query_ids": query_ids,
        "modules": modules,
        "token": "the influence at token t comes from predicting its successor, token t + 1",
        "ranks": "the first half most positive first, the second half most negative first",
    }
    return groups.create_group(folder, arrays, attributes)


def write_ranking(
    group: zarr.Group, sequences: NDArray[np.int64], scores: NDArray[np.float32]
) -> None:
    """Write what each rank is, [Q, ranks] both."""
    groups.array(group, "sequences")[...] = sequences
    groups.array(group, "scores")[...] = scores


def write(group: zarr.Group, query: int, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write one query: its `token_scores` [ranks, module, token], and any of `EFFECTS`."""
    for name, values in arrays.items():
        groups.array(group, name)[query] = values


def query_files(folder: Path, query: int | str) -> list[Path]:
    """The files that `write` makes for a query; `*` for all of them."""
    patterns = [f"token_scores/c/{query}/0/0/0", *(f"{name}/c/{query}/0/0" for name in EFFECTS)]
    return [path for pattern in patterns for path in folder.glob(pattern)]


def queries_in(files: Iterable[str]) -> set[int]:
    """The queries of which files, by their relative paths, hold something."""
    pattern = rf"(?:token_scores/c/(\d+)/0/0/0|(?:{'|'.join(EFFECTS)})/c/(\d+)/0/0)"
    found = (re.fullmatch(pattern, name) for name in files)
    return {int(match[1] or match[2]) for match in found if match}


@dataclass(frozen=True)
class AttributionReader:
    """A complete attribution."""

    artifact: Artifact
    group: zarr.Group

    @classmethod
    def open(cls, path: Path, *, shard: bool = False) -> AttributionReader:
        artifact = Artifact.open(path, "attribute", shard=shard)
        return cls(artifact, groups.open_group(artifact))

    def create_alike(self, folder: Path) -> zarr.Group:
        """A group in `folder` with the same empty arrays, for writing."""
        return groups.create_alike(folder, self.artifact)

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

    def effects(self, name: str, query: int) -> NDArray[np.float32] | None:
        """[ranks, token] of one query, of one of `EFFECTS`; None if it was not asked for."""
        return groups.read(self.group, name, query) if name in self.group else None
