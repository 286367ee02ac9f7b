"""What a calibrated plan says of the demo model is what the run that follows takes: memory and
disk within 25 %, time within a factor of 1.5.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from plan import compare
from test_plan_command import STAGES

import inflcli

DEMO = Path(inflcli.__file__).parent / "demo"
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


@pytest.mark.long
def test_the_demo(inputs):
    """Medians of three comparisons."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for row in compare(*inputs, seq_len=256, fit=FIT)["stages"]:
            for key in BARS:
                ratio = row["found"][key] / row["planned"][key]
                ratios.setdefault((row["stage"], key), []).append(round(ratio, 2))
    far = {
        place: found
        for place, found in ratios.items()
        if not 1 / BARS[place[1]] < statistics.median(found) < BARS[place[1]]
    }
    assert not far
    assert len(ratios) == len(STAGES) * len(BARS)
