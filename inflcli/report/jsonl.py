"""The run as JSON lines: one `run` line, then per query one `query` line and its `sequence` lines.

Unlike the displays it gives text as it is; JSON's own escapes (all but ASCII) make it safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from inflcli.report.model import QueryView, RunView, SequenceView


def render(view: RunView) -> str:
    """The lines of the whole run."""
    return "".join(json.dumps(line) + "\n" for line in _lines(view))


def _lines(view: RunView) -> Iterator[dict[str, Any]]:
    yield {
        "kind": "run",
        "title": view.title,
        "units": "score = nats times the number of training sequences",
        "token": "the influence at a token comes from the prediction of the token after it",
        "group_names": list(view.group_names),
        "scanned": view.scanned,
        "corpus_size": view.corpus_size,
        "dataset_size": view.dataset_size,
        "provenance": asdict(view.provenance),
        "compared": [asdict(run) for run in view.compared],
    }
    for query in view.queries:
        yield _query(query)
        for sequence in query.sequences:
            yield _sequence(query, sequence)


def _query(query: QueryView) -> dict[str, Any]:
    return {
        "kind": "query",
        "query": query.id,
        "prompt": query.prompt,
        "completion": query.completion,
        "log_p": query.log_p,
        "completion_tokens": list(query.completion_units),
        "token_log_p": list(query.unit_log_p),
        "kept_energy": query.kept_energy,
        "metadata": query.metadata,
        "histogram": None if query.histogram is None else asdict(query.histogram),
        "distribution": None if query.distribution is None else asdict(query.distribution),
        "layer_profile": asdict(query.profile),
        "comparisons": [None if one is None else asdict(one) for one in query.comparisons],
    }


def _sequence(query: QueryView, sequence: SequenceView) -> dict[str, Any]:
    text = sequence.text
    return {
        "kind": "sequence",
        "query": query.id,
        "sign": sequence.sign,
        "rank": sequence.rank,
        "sequence": text.sequence,
        "score": sequence.score,
        "nats": sequence.nats,
        "tfidf_rank": sequence.tfidf_rank,
        "ranks_there": list(sequence.ranks_there),
        "spurious": sequence.spurious,
        "groups": list(sequence.groups),
        "sources": [
            {**asdict(source), "influence": sequence.source_influence(source)}
            for source in text.sources
        ],
        "tokens": list(text.units),
        "influence": None if sequence.influence is None else list(sequence.influence),
        "influence_by_group": None if sequence.by_group is None else sequence.by_group.tolist(),
        **{name: list(values) for name, values in sequence.effects.items()},
        "copied": [list(run) for run in sequence.copied],
        "duplicate_of": sequence.duplicate_of,
        "duplicates": list(sequence.duplicates),
    }
