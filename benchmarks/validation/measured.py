"""What lies in `results/`, as the claims, the tables and the figures take it.

`small.py`, `demo.py`, `retraining.py` and `rank_curves.py` write it; what is not there is left out.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMALL = {
    "diabetes": "Diabetes",
    "friedman": "Friedman #1",
    "digits": "Digits",
    "digits-wide": "Digits, 256 wide",
}
RANKED = {"demo": "Demo model", "smollm2": "SmolLM2-135M"}
"""Of rank_curves.py's results."""
DEMO = ("exact", "pbrf")
"""Parts of demo.py that hold estimators against a ground truth."""
EKFAC, GRADIENT, LISSA, KFAC = "EK-FAC", "gradient dot", "LiSSA", "K-FAC"
SHAMPOO, REFINED = "EC-Shampoo", "EK-FAC, refined"
DEMO_NAMES = {
    "gradient": GRADIENT,
    "cosine": "gradient cosine",
    "lissa": LISSA,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "ec-shampoo": SHAMPOO,
    "refined": REFINED,
    "cg": "sampled Gauss-Newton",
    "ekfac-auto": "EK-FAC, `--damping auto`",
    "states-the-fact": "whether it states the fact",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    **{f"blocks-{count}": f"EK-FAC, {count} blocks" for count in (2, 4, 8)},
}
TITLES = {"pbrf": "the PBRF", "exact": "the exact solve"}


@dataclass(frozen=True)
class Task:
    """One problem's estimators: mean and worst Pearson by ground truth, and seconds."""

    name: str
    title: str
    pearson: dict[str, dict[str, tuple[float, float]]]
    """By truth (pbrf, exact) and estimator: mean and least over queries."""
    by_query: dict[str, dict[str, list[float]]]
    seconds: dict[str, float]
    queries: int
    points: int

    @property
    def truth(self) -> str:
        """What it is judged by: the PBRF where there is one."""
        return "pbrf" if self.pearson["pbrf"] else "exact"


def tasks() -> list[Task]:
    found = []
    for name, title in SMALL.items():
        raw = read(name)
        if raw is not None:
            found.append(_small(name, title, raw))
    for part in DEMO:
        raw = read(f"demo-{part}")
        if raw is not None:
            found.append(_demo(part, f"Demo model ({raw['fitted']} sequences)", raw))
    return found


def _small(name: str, title: str, raw: dict[str, Any]) -> Task:
    pearson: dict[str, dict[str, tuple[float, float]]] = {"pbrf": {}, "exact": {}}
    by_query: dict[str, dict[str, list[float]]] = {"pbrf": {}, "exact": {}}
    seconds = {}
    for row in raw["estimators"]:
        estimator = REFINED if row["name"] == "EK-FAC + 10 CG steps" else row["name"]
        for truth in pearson:
            one = row[truth]
            pearson[truth][estimator] = one["pearson_mean"], one["pearson_min"]
            by_query[truth][estimator] = one["pearson"]
        seconds[estimator] = statistics.median(row["totals"])
    queries = len(by_query["pbrf"][EKFAC])
    return Task(name, title, pearson, by_query, seconds, queries, raw["problem"].get("points", 0))


def _demo(part: str, title: str, raw: dict[str, Any]) -> Task:
    pearson: dict[str, dict[str, tuple[float, float]]] = {"pbrf": {}, "exact": {}}
    by_query: dict[str, dict[str, list[float]]] = {"pbrf": {}, "exact": {}}
    for name, row in raw["estimators"].items():
        for truth, key in (("pbrf", "pbrf"), ("exact", "ggn")):
            one = row["against"].get(key)
            if one is not None:
                found = one["pearson"]
                pearson[truth][DEMO_NAMES[name]] = found["mean"], found["min"]
                by_query[truth][DEMO_NAMES[name]] = found["by_query"]
    seconds = {
        DEMO_NAMES[name]: sum(row["seconds"].values()) for name, row in raw["estimators"].items()
    }
    queries, points = len(raw["queries"]), len(raw["points"])
    return Task(part, title, pearson, by_query, seconds, queries, points)


def read(name: str) -> dict[str, Any] | None:
    path = HERE / "results" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def lds() -> dict[str, dict[str, Any]]:
    """By estimator, in the order of its mean."""
    raw = read("lds-demo")
    rows: dict[str, dict[str, Any]] = {} if raw is None else raw.get("lds", {}).get("lds", {})
    return dict(sorted(rows.items(), key=lambda row: -row[1]["mean"]))


def rises() -> dict[str, dict[int, list[float]]]:
    """Rises of the queries' losses by estimator and size, of random paragraphs last."""
    raw = read("lds-demo")
    rises = [] if raw is None else raw.get("topk", {}).get("rises", [])
    found: dict[str, dict[int, list[float]]] = {}
    for one in rises:
        found.setdefault(one["estimator"], {}).setdefault(one["size"], []).append(one["rise"])
    for one in rises:
        if one["estimator"] == rises[0]["estimator"]:  # the same with every estimator
            random = found.setdefault("random", {})
            random.setdefault(one["size"], []).append(one["random_mean"])
    return found


def ranked() -> dict[str, list[tuple[int, float, float]]]:
    """By title: rank, and mean and least Pearson with full rank's scores over queries."""
    found = {}
    for name, title in SMALL.items():
        raw = read(name)
        rows = [] if raw is None else [(row["rank"], row.get("full_rank")) for row in raw["ranks"]]
        kept = [(rank, of["pearson_mean"], of["pearson_min"]) for rank, of in rows if of]
        if kept:
            found[title] = kept
    for name, title in RANKED.items():
        path = HERE.parent / "results" / f"rank-{name}.json"
        if path.is_file():
            found[title] = [
                (row["rank"], row["pearson_mean"], row["pearson_min"])
                for row in json.loads(path.read_text())["rows"]
                if row["rank"] is not None
            ]
    return found


def mean(values: list[float | None]) -> float:
    return statistics.fmean(one for one in values if one is not None)


def least(values: list[float | None]) -> float:
    return min(one for one in values if one is not None)
