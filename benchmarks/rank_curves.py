"""How near compressed queries' scores are to full rank's, against the bytes that a query takes.

    python benchmarks/rank_curves.py --model M --factors F --queries FILE --corpus C --sequences 256

preconditions the queries at full rank, at uniform ranks and at shares of their energy, scans the
first sequences of the corpus with each, and writes benchmarks/results/rank-NAME.json. Every setting
is one run of the stages `precondition` and `scan`, so what is measured is what they do.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inflcli import console
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import PreconditionConfig, Runtime, ScanConfig
from inflcli.stages.precondition import precondition
from inflcli.stages.scan import scan

RESULTS = Path(__file__).with_name("results")
RANKS = [2, 4, 8, 16, 24, 32, 48, 64]
SHARES = [0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
CAPS = [0, 32, 64]


@dataclass(frozen=True)
class Inputs:
    model: str
    factors: Path
    queries: Path
    corpus: Path
    sequences: int
    """Only the first ones of the corpus are scanned."""


Settings = list[dict[str, Any]]


def settings(ranks: list[int], shares: list[float], caps: list[int]) -> Settings:
    """The compressions to compare, as settings of `precondition`; a cap of 0 is none."""
    uniform: Settings = [{"rank": rank, "keep": None, "max_rank": None} for rank in ranks]
    allocated: Settings = [
        {"rank": None, "keep": share, "max_rank": cap or None} for cap in caps for share in shares
    ]
    return uniform + allocated


def run(inputs: Inputs, folder: Path, compression: dict[str, Any]) -> dict[str, Any]:
    """Scores [Q, N] with one compression, and what it keeps by query."""
    runtime = Runtime(overwrite=True)
    queries, scores = folder / "queries", folder / "scan"
    unlimited = {**compression, "max_rank": compression["max_rank"] or 1_000_000}
    config = PreconditionConfig(**unlimited)
    precondition(inputs.model, inputs.factors, inputs.queries, queries, config, runtime)
    stop = min(inputs.sequences, CorpusReader.open(inputs.corpus).n_sequences)
    scan(inputs.model, queries, inputs.corpus, scores, ScanConfig(stop=stop), runtime)
    reader, described = ScanReader.open(scores), QueriesReader.open(queries)
    return {
        "scores": np.stack([reader.scores(q)[:stop] for q in range(len(described.ids))]),
        "bytes": [query["bytes"] for query in described.queries],
        "kept_energy": [query["kept_energy"] for query in described.queries],
        "seconds": described.artifact.manifest.timings["seconds"],
    }


def compare(found: dict[str, Any], full: NDArray[np.float32]) -> dict[str, Any]:
    """Pearson of every query's scores with those of full rank, and means over queries."""
    pearson = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(found["scores"], full, strict=True)]
    return {
        "bytes_a_query": float(np.mean(found["bytes"])),
        "kept_energy_min": min(found["kept_energy"]),
        "pearson_min": min(pearson),
        "pearson_mean": float(np.mean(pearson)),
        "pearson": pearson,
        "precondition_seconds": found["seconds"],
    }


def measure(inputs: Inputs, compressions: Settings) -> list[dict[str, Any]]:
    """One row a compression; full rank first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full = run(inputs, folder, {"rank": None, "keep": None, "max_rank": None})
        rows = [{"rank": None, "keep": None, "max_rank": None, **compare(full, full["scores"])}]
        for compression in compressions:
            found = run(inputs, folder, compression)
            rows.append({**compression, **compare(found, full["scores"])})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="scores against full rank, over queries")
    for column in ("compression", "kB a query", "least energy", "Pearson min", "mean"):
        shown.add_column(column, justify="left" if column == "compression" else "right")
    for row in rows:
        how = "full rank" if row["rank"] is None else f"rank {row['rank']}"
        if row["keep"] is not None:
            limit = f", rank ≤ {row['max_rank']}" if row["max_rank"] else ""
            how = f"keep {row['keep']:g}{limit}"
        numbers = (row[key] for key in ("kept_energy_min", "pearson_min", "pearson_mean"))
        size = f"{row['bytes_a_query'] / 1e3:,.0f}"
        shown.add_row(how, size, *(f"{number:.4f}" for number in numbers))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--factors", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--name", help="Of the result; the model folder's by default.")
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--caps", type=int, nargs="*", default=CAPS, help="0 is none.")
    options = parser.parse_args()
    name = options.name or Path(options.model).resolve().name
    inputs = Inputs(
        options.model, options.factors, options.queries, options.corpus, options.sequences
    )
    console.set_level(console.QUIET)
    rows = measure(inputs, settings(options.ranks, options.shares, options.caps))
    RESULTS.mkdir(exist_ok=True)
    content = {"command": shlex.join(["python", *sys.argv]), "rows": rows}
    path = RESULTS / f"rank-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    Console().print(table(rows))
    print(path)


if __name__ == "__main__":
    main()
