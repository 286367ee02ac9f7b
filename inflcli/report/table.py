"""The shown sequences as one table, a row for each pair of query and sequence, in Parquet.

The file has what the JSON lines have; the page carries the columns without text and tokens.
"""

from __future__ import annotations

import io
import json
from typing import Any

from inflcli.errors import BadInput
from inflcli.report.model import QueryView, RunView, SequenceView


def render(view: RunView) -> bytes:
    """All columns. Raises BadInput where pyarrow is not installed."""
    try:
        return _parquet(view, whole=True)
    except ImportError as error:
        raise BadInput(
            "--format parquet needs the package pyarrow", "pip install 'inflcli[formats]'"
        ) from error


def carried(view: RunView) -> bytes | None:
    """What the page carries; None where pyarrow is not installed."""
    try:
        return _parquet(view, whole=False)
    except ImportError:
        return None


def _parquet(view: RunView, *, whole: bool) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = [_row(query, one, whole) for query in view.queries for one in query.sequences]
    types = {
        "query": pyarrow.string(),
        "sign": pyarrow.int8(),
        "rank": pyarrow.int32(),
        "sequence": pyarrow.int64(),
        "score": pyarrow.float64(),
        "nats": pyarrow.float64(),
        "tfidf_rank": pyarrow.int32(),
        "spurious": pyarrow.bool_(),
        "duplicate_of": pyarrow.int32(),
        "documents": pyarrow.list_(pyarrow.string()),
        "groups": pyarrow.list_(pyarrow.float32()),
    }
    if whole:
        types["tokens"] = pyarrow.list_(pyarrow.string())
        for name in view.shadings:
            types[_column(name)] = pyarrow.list_(pyarrow.float32())
    about = {"units": "score = nats times the number of training sequences"}
    about["group_names"] = json.dumps(list(view.group_names))
    schema = pyarrow.schema(list(types.items()), metadata=about)
    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows, schema)
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def _column(shading: str) -> str:
    return "influence" if shading == "tokens" else shading


def _row(query: QueryView, view: SequenceView, whole: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "query": _plain(query.id),
        "sign": view.sign,
        "rank": view.rank,
        "sequence": view.text.sequence,
        "score": view.score,
        "nats": view.nats,
        "tfidf_rank": view.tfidf_rank,
        "spurious": view.spurious,
        "duplicate_of": view.duplicate_of,
        "documents": [_plain(source.document_id) for source in view.text.sources],
        "groups": list(view.groups),
    }
    if whole:
        row["tokens"] = [_plain(unit) for unit in view.text.units]
        row |= {_column(name): list(values) for name, values in view.shadings.items()}
    return row


def _plain(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
