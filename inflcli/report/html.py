"""The run as one HTML page that needs nothing else: no network, no other file.

The frame (queries, charts, provenance) is rendered here, autoescaped. Texts and numbers of each
query are embedded, packed, and the page's script lays them out when it is opened; the first query
and the script come before all others, so that a page with thousands of sequences opens at once.
The content-security policy admits the page's own style and script by their hashes, and nothing
else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from inflcli.report import charts, table
from inflcli.report.excerpt import excerpt
from inflcli.report.model import QueryView, RunView, SequenceText, SequenceView, SourceView
from inflcli.report.text import HIDDEN, clip, one_line, percent, place, signed, visible

_EXCERPT = 420
"""Characters of a sequence's text that are shown before it is opened."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STEPS, _MAP_STEPS = 999, 31
"""Steps from zero to a sequence's strongest token, and to its strongest in a depth group."""
_LABEL = 96
"""Longest document id or title."""


def render(view: RunView) -> str:
    """The whole page. Cost: O(tokens shown)."""
    environment, carried = _environment(), table.carried(view)
    data, queries = payload(view)
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
        data=Markup(embed(data)),
        queries=queries,
        parquet=None if carried is None else Markup(base64.b64encode(carried).decode()),
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
        tick=_tick,
        share=_share,
        part=_part,
        about=_about,
    )
    environment.globals.update(
        histogram_chart=charts.histogram_chart,
        survival_chart=charts.survival_chart,
        profile_rows=charts.profile_rows,
        scatter_chart=charts.scatter_chart,
        concentration_chart=charts.concentration_chart,
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


def _tick(value: float) -> str:
    """A round number, with no more digits than it has."""
    digits = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):g}"
    return digits if value == 0 else ("+" if value > 0 else "\u2212") + digits


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"


def _part(share: float) -> str:
    return f"{100 * share:+.0f}%".replace("-", "\u2212")


def _about(count: float) -> str:
    """Two digits: more would say more than is known."""
    return f"{float(f'{count:.2g}'):,.0f}" if count < 1e15 else "more than 10¹⁵"


def _probability(log_p: float) -> str:
    """e^log_p in per cent, or with a power of ten where that says more."""
    if log_p >= math.log(1e-4):
        return percent(min(math.exp(log_p), 1.0))
    power = math.floor(log_p / math.log(10))
    digits = str(power).translate(_SUPERSCRIPT)
    return f"{math.exp(log_p - power * math.log(10)):.1f} × 10{digits}"


def _level(log_p: float | None) -> int:
    """0 for a token that the model was sure of, to 4 for one that surprised it."""
    if log_p is None:
        return 0
    return sum(log_p < math.log(bound) for bound in (0.8, 0.4, 0.1, 0.01))


def embed(content: Any) -> str:
    """JSON that cannot leave the script element it stands in, nor be cut by a line separator."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Of these only < could end the element; > and & are no loss, and save a reader the thought.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Nor is a hidden character there to be seen by who reads the source.
    return HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def payload(view: RunView) -> tuple[dict[str, Any], list[str]]:
    """What the script needs of the run, and of each query, packed. Cost: O(tokens shown).

    A query is zlib in base64, of: the length of its JSON, 32 bits; that, a multiple of four bytes;
    the tokens of its texts, as numbers into the page's list of strings, 16 bits or 32, in the order
    of the JSON's texts; the shadings of its sequences, positive ones first, of each in the order
    of the page's shadings, 16 bits a unit, the low bytes of all and then the high ones; and the
    influences by depth group, 8 bits each. Both are whole numbers of a unit of their sequence's
    own. Little-endian.
    """
    strings: dict[str, int] = {}
    for query in view.queries:
        for sequence in query.sequences:
            for unit in sequence.text.units:
                strings.setdefault(unit, len(strings))
    wide = len(strings) > 1 << 16
    data = {
        "groups": list(view.group_names),
        "candidates": view.candidates,
        "nats": view.dataset_size is not None,
        "compared": [clip(one_line(run.name), _LABEL) for run in view.compared],
        "shadings": list(view.shadings),
        "strings": [visible(unit) for unit in strings],
        "wide": wide,
    }
    kind = "<u4" if wide else "<u2"
    return data, [_packed(query, view.shadings, strings, kind) for query in view.queries]


def _packed(
    query: QueryView, shadings: Sequence[str], strings: Mapping[str, int], kind: str
) -> str:
    texts = list({one.text.sequence: one.text for one in query.sequences}.values())
    tokens = np.array([strings[unit] for text in texts for unit in text.units], kind)
    shown = [sequence for sequence in query.sequences if sequence.influence is not None]
    fine = [_steps(view.shadings[name], _STEPS) for view in shown for name in shadings]
    coarse = [_steps(view.by_group, _MAP_STEPS) for view in shown if view.by_group is not None]
    # All low bytes before all high ones: what is alike lies together, and packs to less.
    whole = np.concatenate([np.zeros(0), *fine]).astype("<i2").view("u1")
    parts = [tokens, whole[::2].copy(), whole[1::2].copy(), *(part.astype("i1") for part in coarse)]
    data = {
        "id": one_line(query.id),
        "strongest": {name: query.strongest(name) for name in shadings},
        "texts": [_text(text) for text in texts],
        "positive": [_sequence(sequence) for sequence in query.positive],
        "negative": [_sequence(sequence) for sequence in query.negative],
    }
    told = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    told += b" " * (-len(told) % 4)
    numbers = b"".join(part.tobytes() for part in parts)
    packed = zlib.compress(struct.pack("<I", len(told)) + told + numbers)
    # Base64 has no character that could leave its element.
    return Markup(base64.b64encode(packed).decode())


def _text(text: SequenceText) -> dict[str, Any]:
    return {
        "n": text.sequence,
        "units": len(text.units),
        "many": [n for n, count in enumerate(text.token_counts) if count > 1],
        "special": sorted(text.special),
        "tokens": sum(text.token_counts),
        "sources": [_source(source) for source in text.sources],
    }


def _shown(source: SourceView) -> str:
    return clip(one_line(source.document_id), _LABEL)


def _source(source: SourceView) -> dict[str, Any]:
    shown = _shown(source)
    return {
        "id": shown,
        **({} if shown == source.document_id else {"key": source.document_id}),
        "title": None if source.title is None else clip(one_line(source.title), _LABEL),
        "place": one_line(place(source.file, source.line)),
        "chars": [source.char_start, source.char_end],
        "units": [source.start, source.stop],
    }


def _sequence(view: SequenceView) -> dict[str, Any]:
    source = view.main_source()
    return {
        "n": view.text.sequence,
        "score": _short(view.score),
        "nats": None if view.nats is None else _short(view.nats),
        "rank": view.rank,
        "spurious": view.spurious,
        "tfidf": view.tfidf_rank,
        "there": list(view.ranks_there),
        "groups": [_short(value) for value in view.groups],
        "w": {name: _unit(values, _STEPS) for name, values in view.shadings.items()} or None,
        "map": None if view.by_group is None else _unit(view.by_group, _MAP_STEPS),
        "copied": [list(run) for run in view.copied],
        "duplicates": list(view.duplicates),
        "duplicate": view.duplicate_of,
        "cut": excerpt(view.text.units, view.influence, _EXCERPT),
        "main": None if source is None else list(view.text.sources).index(source),
    }


def _unit(values: ArrayLike, steps: int) -> float:
    """The size of a step, of which the strongest value has `steps`."""
    return float(np.abs(values).max(initial=0.0)) / steps or 1.0


def _steps(values: ArrayLike, steps: int) -> NDArray[np.float64]:
    return np.rint(np.asarray(values, np.float64) / _unit(values, steps))


def _short(value: float) -> float:
    """Four significant digits: more than the page shows."""
    return float(f"{value:.4g}")
