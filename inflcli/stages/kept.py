"""What `queries.json` says of a query: its tokens, its log-probability, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from inflcli import console
from inflcli.config import PreconditionConfig
from inflcli.corpus.queries import EncodedQuery
from inflcli.model.tracked import TrackedModule
from inflcli.stages.compression import Compressed

_LOSSY_BELOW = 0.9
_WARNINGS = 3
"""Queries named, at most, of those that a rank compresses too much."""


def describe(query: EncodedQuery, log_p: Tensor) -> dict[str, Any]:
    """The query, and the log-probabilities [T] of its completion."""
    first = max(query.completion_start, 1)
    of_completion = log_p[first - 1 : len(query.tokens) - 1].double().tolist()
    fields: Mapping[str, Any] = asdict(query.query)
    return {
        **fields,
        "tokens": query.tokens,
        "completion_start": query.completion_start,
        "merged": query.merged,
        "token_log_p": of_completion,
        "log_p": sum(of_completion),
    }


def describe_kept(
    found: Mapping[str, Compressed],
    modules: Sequence[TrackedModule],
    row: int,
    config: PreconditionConfig,
    itemsize: int,
) -> dict[str, Any]:
    """What is kept of query `row` of a chunk, as a whole and by module; numbers of `itemsize`."""
    whole = config.rank is None and config.keep is None
    numbers, by_module = 0, {}
    for module in modules:
        one = found[module.name]
        rank, size = one.ranks[row], module.inputs + module.outputs
        numbers += module.parameters if whole else rank * size
        share = _share(one.kept[row], one.energy[row])
        by_module[module.name] = {"rank": rank, "found": one.found[row], "kept_energy": share}
    kept = sum(one.kept[row] for one in found.values())
    energy = sum(one.energy[row] for one in found.values())
    return {
        "kept_energy": _share(kept, energy),
        "columns": sum(entry["rank"] for entry in by_module.values()),
        "bytes": numbers * itemsize,
        "modules": by_module,
    }


def _share(kept: float, energy: float) -> float:
    # The two are sums of different roundings.
    return min(kept / energy, 1.0) if energy > 0 else 1.0


def warn_if_lossy(described: list[dict[str, Any]], config: PreconditionConfig) -> None:
    """Say of which queries too little is kept."""
    wanted, option = config.keep, "--max-rank"
    if wanted is None:
        wanted, option = _LOSSY_BELOW, "--rank"
    rank = config.rank if config.keep is None else config.max_rank
    lossy = [query for query in described if query["kept_energy"] < wanted]
    for query in lossy[:_WARNINGS]:
        console.warn(
            f"query {query['id']!r}: rank {rank} keeps {query['kept_energy']:.2%} of its squared "
            f"norm, less than {wanted:.1%}; a higher {option} keeps more"
        )
    if len(lossy) > _WARNINGS:
        console.warn(f"the same is true of {len(lossy) - _WARNINGS} more queries")
