"""`compare`: how far two scans of one corpus agree, query by query."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inflcli.artifacts.scan import ScanReader
from inflcli.errors import BadInput
from inflcli.statistics.agreement import agreement

MEASURES = ("pearson", "spearman", "overlap")


def compare(first: Path, second: Path, top_k: int) -> dict[str, Any]:
    """Pearson, Spearman and the overlap of the top `top_k`, over the sequences that both scored.

    None where it is not defined. Queries are matched by id. Cost: both scans' scores are read.
    Raises BadInput for scans of different corpora, or without a common query.
    """
    readers = [ScanReader.open(path) for path in (first, second)]
    corpora = {reader.artifact.manifest.inputs["corpus"].fingerprint for reader in readers}
    if len(corpora) > 1:
        raise BadInput(
            f"{first} and {second} are scans of different corpora",
            "sequences are compared by their number: scan one corpus with both",
        )
    places = [{name: place for place, name in enumerate(one.query_ids)} for one in readers]
    shared = [name for name in places[0] if name in places[1]]
    if not shared:
        raise BadInput(f"{first} and {second} have no query in common, by their ids")
    rows: list[dict[str, float | None]] = []
    both = (
        reader.each_scores([place[name] for name in shared])
        for reader, place in zip(readers, places, strict=True)
    )
    for one, other in zip(*both, strict=True):
        found = asdict(agreement(one, other, top_k))
        rows.append({key: _known(value) for key, value in found.items()})
    return {
        "first": str(first),
        "second": str(second),
        "queries": [{"query": name, **row} for name, row in zip(shared, rows, strict=True)],
        "only_first": [name for name in places[0] if name not in places[1]],
        "only_second": [name for name in places[1] if name not in places[0]],
        "mean": {key: _mean([row[key] for row in rows]) for key in MEASURES},
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
