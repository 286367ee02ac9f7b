"""What a calibrated plan says of the demo model is what the run that follows takes: memory and
disk within 25 %, time within a factor of 1.5.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plan import compare

import inflcli

DEMO = Path(inflcli.__file__).parent / "demo"
DOCUMENTS, QUERIES, FIT = 256, 4, 150
TRIES = 3


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


def test_the_demo(inputs):
    """Timings on a shared machine can be disturbed: one of three comparisons must hold."""
    misses = []
    for _ in range(TRIES):
        found = compare(*inputs, seq_len=256, fit=FIT)["stages"]
        far = [
            (row["stage"], key, round(row["found"][key] / row["planned"][key], 2))
            for row in found
            for key, factor in (("seconds", 1.5), ("memory", 1.25), ("disk", 1.25))
            if not 1 / factor < row["found"][key] / row["planned"][key] < factor
        ]
        if not far:
            return
        misses.append(far)
    pytest.fail(json.dumps(misses))
