"""`attribute --sequences`: a user's own texts, which no corpus holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import AttributeConfig, PrepareConfig, Runtime, ScanConfig
from inflcli.stages.attribute import attribute
from inflcli.stages.prepare import prepare
from inflcli.stages.scan import scan


def attribute_sequences(
    model: str,
    queries: Path,
    sequences: Path,
    out: Path,
    config: AttributeConfig,
    runtime: Runtime,
    *,
    seq_len: int,
    top_k: int | None,
) -> dict[str, Any]:
    """Score and attribute texts as if they had been trained on, each a sequence of its own.

    `out` becomes a run, with `corpus`, `scan` and `attribution`, which `report` takes; each is
    made as its stage makes it, and resumes as it does. `top_k` of None takes all sequences. Cost:
    that of the stages. Raises what they raise.
    """
    corpus, scanned = out / "corpus", out / "scan"
    prepare([str(sequences)], model, corpus, PrepareConfig(seq_len=seq_len, per_line=True), runtime)
    count = top_k or CorpusReader.open(corpus).n_sequences
    # They are few: what --precision fast would save is nothing, and influences add up better.
    settings = ScanConfig(top_k=count, dtype=config.dtype, precision="exact")
    scan(model, queries, corpus, scanned, settings, runtime)
    config = replace(config, top_k=count)
    return attribute(model, queries, corpus, scanned, out / "attribution", config, runtime)
