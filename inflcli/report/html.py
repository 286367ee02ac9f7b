"""The run as one HTML page that needs nothing else: no network, no other file.

The frame (queries, charts, provenance) is rendered here, autoescaped. The texts of the sequences
are embedded once as JSON, and the page's script lays them out when their query is opened, so that
a page with thousands of sequences opens at once. The content-security policy admits the page's
own style and script by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inflcli.report import charts
from inflcli.report.excerpt import excerpt
from inflcli.report.model import QueryView, RunView, SequenceText, SequenceView
from inflcli.report.text import clip, one_line, percent, place, signed, visible

_EXCERPT = 420
"""Characters of a sequence's text that are shown before it is opened."""
_LABEL = 160
"""Longest document id or title."""


def render(view: RunView) -> str:
    """The whole page. Cost: O(tokens shown)."""
    environment = _environment()
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    script = environment.loader.get_source(environment, "report.js")[0]  # type: ignore[union-attr]
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html.j2").render(
        view=view,
        policy=policy,
        # Our own files, which the policy pins by hash: they must go in as they are.
        style=Markup(style),
        script=Markup(script),
        data=Markup(embed(payload(view))),
        plot_height=charts.HEIGHT,
    )
    # A lone surrogate cannot be written as UTF-8; `visible` leaves none, wherever it was applied.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("inflcli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(
        visible=visible,
        line=_line,
        signed=_signed,
        probability=_probability,
        level=_level,
        round=_round,
    )
    environment.globals.update(
        histogram_chart=charts.histogram_chart, profile_rows=charts.profile_rows
    )
    return environment


def _line(text: str, width: int = _LABEL) -> str:
    return one_line(clip(text, width))


def _signed(value: float) -> str:
    return signed(value, "\u2212")


def _round(value: float) -> str:
    return f"{value:.2f}"


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _probability(log_p: float) -> str:
    """e^log_p in per cent, or as a power of ten where that says more."""
    if log_p < math.log(1e-4):
        return f"10^{log_p / math.log(10):.1f}".replace("-", "\u2212")
    return percent(min(math.exp(log_p), 1.0))


def _level(log_p: float | None) -> int:
    """0 for a token that the model was sure of, to 4 for one that surprised it."""
    if log_p is None:
        return 0
    return sum(log_p < math.log(bound) for bound in (0.8, 0.4, 0.1, 0.01))


def embed(content: Any) -> str:
    """JSON that cannot leave the script element it stands in, nor be cut by a line separator."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Of these only < could end the element; > and & are no loss, and save a reader the thought.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def payload(view: RunView) -> dict[str, Any]:
    """What the page's script needs: texts by sequence number, and each query's sequences."""
    texts = {s.text.sequence: s.text for query in view.queries for s in query.sequences}
    return {
        "groups": list(view.group_names),
        "candidates": view.candidates,
        "nats": view.dataset_size is not None,
        "texts": {str(number): _text(text) for number, text in texts.items()},
        "queries": [_query(query) for query in view.queries],
    }


def _text(text: SequenceText) -> dict[str, Any]:
    return {
        "t": [visible(unit) for unit in text.units],
        "many": [n for n, count in enumerate(text.token_counts) if count > 1],
        "special": sorted(text.special),
        "tokens": sum(text.token_counts),
        "sources": [
            {
                "id": clip(one_line(source.document_id), _LABEL),
                "title": None if source.title is None else clip(one_line(source.title), _LABEL),
                "place": one_line(place(source.file, source.line)),
                "chars": [source.char_start, source.char_end],
                "units": [source.start, source.stop],
            }
            for source in text.sources
        ],
    }


def _query(query: QueryView) -> dict[str, Any]:
    return {
        "strongest": query.strongest,
        "positive": [_sequence(sequence) for sequence in query.positive],
        "negative": [_sequence(sequence) for sequence in query.negative],
    }


def _sequence(view: SequenceView) -> dict[str, Any]:
    source = view.main_source()
    return {
        "n": view.text.sequence,
        "score": _short(view.score),
        "nats": None if view.nats is None else _short(view.nats),
        "rank": view.rank,
        "tfidf": view.tfidf_rank,
        "groups": [_short(value) for value in view.groups],
        "w": None if view.influence is None else [_short(value) for value in view.influence],
        "cut": excerpt(view.text.units, view.influence, _EXCERPT),
        "main": None if source is None else list(view.text.sources).index(source),
    }


def _short(value: float) -> float:
    """Four significant digits: half the size of the page, and more than anyone reads."""
    return float(f"{value:.4g}")
