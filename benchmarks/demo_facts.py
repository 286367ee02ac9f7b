"""How often the top of a scan states the fact that a query asks for.

    python benchmarks/demo_facts.py

runs the embedded demo with EK-FAC, with the gradient dot product and with TF-IDF alone, and prints
for each query the rank of the first training sequence that states the fact. A sequence states a
fact when it holds every string of the query's `metadata.fact.all` and, where given, one of
`metadata.fact.any`. The demo's queries were picked knowing that EK-FAC finds their facts; those of
`more-facts.jsonl` are others that the model answers rightly, the replaced first choices among them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
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
MORE = Path(__file__).with_name("more-facts.jsonl")
FIT = FitFactorsConfig(max_sequences=600)  # the Makefile's
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

    demo: list[str]
    """The queries that are the demo's."""

    def found(self, method: str, queries: Iterable[str] | None = None, top: int = 5) -> int:
        """How many of `queries` (all by default) have their fact within the first `top`."""
        ranks = self.ranks[method]
        return sum(ranks[query] <= top for query in queries or ranks)


def measure(run: Path) -> FactRanks:
    """Run the demo's stages below `run` and rank. Takes a minute or two on two cores."""
    runtime = Runtime(device="cpu")
    asked_for = run / "queries.jsonl"
    asked_for.write_text(QUERIES.read_text("utf-8") + MORE.read_text("utf-8"), "utf-8")
    prepare([str(TEXT)], MODEL, run / "corpus", PrepareConfig(seq_len=256, per_line=True), runtime)
    fit_factors(MODEL, run / "corpus", run / "factors", FIT, runtime)
    for method in ("ekfac", "identity"):
        asked, scores = run / f"queries-{method}", run / f"scan-{method}"
        config = PreconditionConfig(curvature=method)
        precondition(MODEL, run / "factors", asked_for, asked, config, runtime)
        scan(MODEL, asked, run / "corpus", scores, ScanConfig(), runtime)
    filtered = run / "candidates"
    tfidf_filter(run / "corpus", asked_for, filtered, TfidfConfig(top=100), runtime)
    demo = [query["id"] for query in read_jsonl(QUERIES)]
    return FactRanks(*_rank(run, CandidateReader.open(filtered)), demo)


def _rank(
    run: Path, candidates: CandidateReader
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    documents, queries = read_jsonl(TEXT), read_jsonl(run / "queries.jsonl")
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
    for title, queries in (("the demo's, in the top five", facts.demo), ("all", facts.stated)):
        found = (f"{facts.found(method, queries)} of {len(queries)}" for method in METHODS)
        table.add_row(title, "", *found, style="bold")
    Console().print(table)


if __name__ == "__main__":
    main()
