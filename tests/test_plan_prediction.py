"""What a calibrated plan says of the demo model and of SmolLM2 is what the run that follows takes:
memory and disk within 25 %, time within a factor of 1.5.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from plan import compare
from test_plan_command import STAGES

import inflcli

DEMO = Path(inflcli.__file__).parent / "demo"
ROOT = Path(__file__).parent.parent
SMOLLM2 = ROOT / "downloads" / "smollm2"
DOCUMENTS, QUERIES, FIT = 256, 4, 150
ROUNDS = 3
BARS = {"seconds": 1.5, "memory": 1.25, "disk": 1.25}


def few(path: Path, count: int, out: Path) -> str:
    lines = path.read_text().splitlines()
    step = len(lines) // count
    out.write_text("\n".join(lines[::step][:count]) + "\n")
    return str(out)


@pytest.fixture
def inputs(tmp_path):
    text = few(DEMO / "corpus.jsonl", DOCUMENTS, tmp_path / "text.jsonl")
    queries = few(DEMO / "queries.jsonl", QUERIES, tmp_path / "queries.jsonl")
    return str(DEMO / "model"), text, queries, tmp_path / "work"


def far_off(comparisons: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Found over planned, of each stage's time, memory and disk whose median is off the bars."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for comparison in comparisons:
        for row in comparison["stages"]:
            for key in BARS:
                ratio = row["found"][key] / row["planned"][key]
                ratios.setdefault((row["stage"], key), []).append(round(ratio, 2))
    assert len(ratios) == len(STAGES) * len(BARS)
    return {
        place: found
        for place, found in ratios.items()
        if not 1 / BARS[place[1]] < statistics.median(found) < BARS[place[1]]
    }


@pytest.mark.long
def test_the_demo(inputs):
    """Medians of three comparisons."""
    assert not far_off([compare(*inputs, seq_len=256, fit=FIT) for _ in range(ROUNDS)])


@pytest.mark.long
def test_smollm2(tmp_path):
    """`make soak` fetches it first."""
    assert (SMOLLM2 / "model").is_dir()
    queries = ROOT / "benchmarks" / "smollm2-queries.jsonl"
    given = (SMOLLM2 / "model", SMOLLM2 / "corpus.jsonl", queries)
    assert not far_off([compare(*map(str, given), tmp_path, seq_len=64, fit=200)])
