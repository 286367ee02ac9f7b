"""Timing prepare and tfidf-filter: some of the corpus's own text, and some of its blocks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from inflcli.artifacts.candidates import write
from inflcli.config import PrepareConfig, Runtime, TfidfConfig
from inflcli.model.resolve import load_tokenizer
from inflcli.retrieval.tfidf import QueryTerms, TopCandidates, block_frequency, block_scores
from inflcli.stages.planning.timing import Timed
from inflcli.stages.prepare import prepare
from inflcli.stages.tfidf_filter import BLOCK

_TOKENS = 200_000


def time_text(timed: Timed, model: Path) -> None:
    """Tokens a second of the two, where there is a corpus; it is left as it is."""
    if timed.task.text.reader is None:
        return
    timed.text["prepare"] = _prepare(timed, model)
    timed.text["tfidf-filter"] = _filter(timed)


def _prepare(timed: Timed, model: Path) -> float:
    """The stage itself, on sequences turned back into text."""
    text = timed.task.text
    count = min(text.count, max(1, int(_TOKENS / text.mean)))
    ids = np.unique(np.linspace(0, text.count - 1, count).astype(np.int64))
    tokenizer = load_tokenizer(model)
    lines = timed.folder / "text.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for row, length in zip(text.take(ids), text.lengths[ids], strict=True):
            # A document must not be empty, whatever the tokens spell.
            file.write(json.dumps({"text": tokenizer.decode(row[:length]) + " ."}) + "\n")
    config = PrepareConfig(seq_len=text.width, per_line=True)
    begun = time.perf_counter()
    done = prepare([str(lines)], str(model), timed.folder / "corpus", config, Runtime())
    seconds = time.perf_counter() - begun
    return float(done["counts"]["tokens"]) / seconds


def _filter(timed: Timed) -> float:
    """Its two passes, over the first blocks; and how far what they find compresses."""
    task, text, reader = timed.task, timed.task.text, timed.task.text.reader
    assert reader is not None
    stop = min(text.count, BLOCK * max(1, int(_TOKENS / text.mean / BLOCK)))
    begun = time.perf_counter()
    terms = QueryTerms.of([query.tokens for query in task.encoded])
    top = TopCandidates(len(task.encoded), min(TfidfConfig().top, stop))
    for first in range(0, stop, BLOCK):
        part = slice(first, min(first + BLOCK, stop))
        for _ in range(2):
            tokens = reader.tokens(part.start, part.stop)
            occurrence = terms.occurrence(tokens, text.lengths[part])
            frequency = block_frequency(occurrence)
        weights = terms.weights(frequency, part.stop - part.start)
        top.update(first, block_scores(occurrence, weights))
    ids, scores = top.ranked()
    seconds = time.perf_counter() - begun
    folder = timed.folder / "candidates"
    write(folder, ids, scores, [query.query.id for query in task.encoded], {})
    chunks = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    timed.candidate = sum(path.stat().st_size for path in chunks) / ids.size
    return float(text.lengths[:stop].sum()) / seconds
