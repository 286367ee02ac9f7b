"""How often the top of a scan states the fact that a demo query asks for.

    python benchmarks/demo_facts.py

runs the embedded demo with EK-FAC, with the gradient dot product and with TF-IDF alone, and prints
for each the queries whose top five training sequences hold a statement of the fact. A sequence
states a fact when it holds every string of the query's `metadata.fact.all` and, where given, one
of `metadata.fact.any`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import (
    FitFactorsConfig,
    PreconditionConfig,
    PrepareConfig,
    Runtime,
    ScanConfig,
    TfidfConfig,
)
from inflcli.stages.fit_factors import fit_factors
from inflcli.stages.precondition import precondition
from inflcli.stages.prepare import prepare
from inflcli.stages.scan import scan
from inflcli.stages.tfidf_filter import tfidf_filter

DEMO = Path(__file__).parent.parent / "inflcli" / "demo"
MODEL, TEXT, QUERIES = str(DEMO / "model"), DEMO / "corpus.jsonl", DEMO / "queries.jsonl"
METHODS = ("ekfac", "identity", "tfidf")
NAMES = {"ekfac": "EK-FAC", "identity": "gradient dot product", "tfidf": "TF-IDF"}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def states(text: str, fact: dict[str, list[str]]) -> bool:
    """Whether a text states a fact."""
    either = fact.get("any")
    return all(word in text for word in fact["all"]) and (
        not either or any(word in text for word in either)
    )


@dataclass(frozen=True)
class FactRanks:
    """Per method and query: the rank, from 1, of the first sequence that states the fact."""

    ranks: dict[str, dict[str, int]]
    stated: dict[str, int]
    """Sequences of the whole corpus that state the fact, by query."""

    def found(self, method: str, top: int = 5) -> int:
        return sum(rank <= top for rank in self.ranks[method].values())


def measure(run: Path) -> FactRanks:
    """Run the demo's stages below `run` and rank. Takes a minute or two on two cores."""
    runtime = Runtime(device="cpu")
    prepare([str(TEXT)], MODEL, run / "corpus", PrepareConfig(seq_len=256, per_line=True), runtime)
    fit_factors(MODEL, run / "corpus", run / "factors", FitFactorsConfig(), runtime)
    for method in ("ekfac", "identity"):
        asked, scores = run / f"queries-{method}", run / f"scan-{method}"
        config = PreconditionConfig(curvature=method)
        precondition(MODEL, run / "factors", QUERIES, asked, config, runtime)
        scan(MODEL, asked, run / "corpus", scores, ScanConfig(), runtime)
    filtered = run / "candidates"
    tfidf_filter(run / "corpus", QUERIES, filtered, TfidfConfig(top=100), runtime)
    return FactRanks(*_rank(run, CandidateReader.open(filtered)))


def _rank(
    run: Path, candidates: CandidateReader
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    documents, queries = read_jsonl(TEXT), read_jsonl(QUERIES)
    orders = {
        method: np.argsort(-_scores(run / f"scan-{method}"), axis=1, kind="stable")
        for method in ("ekfac", "identity")
    }
    orders["tfidf"] = candidates.ids
    ranks: dict[str, dict[str, int]] = {method: {} for method in METHODS}
    stated = {}
    for row, query in enumerate(queries):
        fact = query["metadata"]["fact"]
        says = [states(document["text"], fact) for document in documents]
        stated[query["id"]] = sum(says)
        for method in METHODS:
            order = orders[method][row]
            hits = [rank for rank, document in enumerate(order, 1) if says[document]]
            ranks[method][query["id"]] = hits[0] if hits else len(documents)
    return ranks, stated


def _scores(path: Path) -> np.ndarray:
    reader = ScanReader.open(path)
    return np.stack([reader.scores(query) for query in range(len(reader.query_ids))])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder))
    table = Table(title="rank of the first training sequence that states the fact")
    for column in ("query", "sequences that state it", *(NAMES[method] for method in METHODS)):
        table.add_column(column, justify="left" if column == "query" else "right")
    for query, count in facts.stated.items():
        table.add_row(query, str(count), *(str(facts.ranks[m][query]) for m in METHODS))
    total = len(facts.stated)
    table.add_row("in the top five", "", *(f"{facts.found(m)} of {total}" for m in METHODS))
    Console().print(table)


if __name__ == "__main__":
    main()
