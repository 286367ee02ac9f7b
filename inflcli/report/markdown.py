"""The run as Markdown, for an issue or a notebook: one table of top sequences per query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from inflcli.report.excerpt import excerpt
from inflcli.report.model import (
    SPURIOUS,
    SPURIOUS_MEANS,
    QueryView,
    RunView,
    SequenceView,
)
from inflcli.report.text import clip, one_line, place, signed

_SNIPPET = 280
_STRONG = 0.35
"""Tokens from this share of the query's strongest on are set off."""
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def escape(text: str) -> str:
    """`text` on one line, none of it read as Markdown, HTML or a link."""
    # CommonMark lets a backslash take the meaning from every ASCII punctuation character.
    return _PUNCTUATION.sub(r"\\\1", one_line(text))


def render(view: RunView) -> str:
    """The whole run."""
    return "\n".join(_lines(view)) + "\n"


def _lines(view: RunView) -> Iterator[str]:
    yield f"# Influence report: {escape(view.title)}"
    yield ""
    yield (
        f"{view.scanned:,} of {view.corpus_size:,} training sequences scanned for "
        f"{len(view.queries)} queries. A positive influence raises the log-probability of the "
        "completion."
    )
    if view.shadings:
        yield (
            "In the text, <b>bold</b> tokens raise it most, <i>italic</i> ones lower it; each acts "
            "by the prediction of the token after it."
        )
    for query in view.queries:
        yield from _query(view, query)
    yield from _provenance(view)


def _query(view: RunView, query: QueryView) -> Iterator[str]:
    yield ""
    yield f"## {escape(clip(query.id, 100))}"
    yield ""
    prompt, completion = escape(clip(query.prompt, 2000)), escape(clip(query.completion, 500))
    yield f"> {prompt}<b>{completion}</b>"
    yield ""
    yield f"log p = {query.log_p:.4f}"
    for title, side in (("Raise it", query.positive), ("Lower it", query.negative)):
        sequences = [sequence for sequence in side if sequence.duplicate_of is None]
        if sequences:
            yield from ("", f"### {title}", "")
            yield from _table(view, sequences, query.strongest())
            if any(sequence.spurious for sequence in sequences):
                yield from ("", f"{SPURIOUS} {SPURIOUS_MEANS}.")


def _table(view: RunView, sequences: Sequence[SequenceView], strongest: float) -> Iterator[str]:
    columns = ["#", "influence"]
    columns += ["nats"] * bool(view.dataset_size) + ["TF-IDF rank"] * bool(view.candidates)
    columns += ["source", "text"]
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for sequence in sequences:
        mark = SPURIOUS if sequence.spurious else ""
        cells = [f"{sequence.rank}{mark}", signed(sequence.score)]
        cells += [signed(sequence.nats or 0.0)] * bool(view.dataset_size)
        if view.candidates:
            cells.append("" if sequence.tfidf_rank is None else str(sequence.tfidf_rank))
        cells += [_source(sequence), _snippet(sequence, strongest)]
        yield f"| {' | '.join(cells)} |"


def _source(sequence: SequenceView) -> str:
    source = sequence.main_source()
    if source is None:
        return f"sequence {sequence.text.sequence}"
    where = f"{place(source.file, source.line)}, characters {source.char_start}–{source.char_end}"
    lines = [escape(clip(source.document_id, 100)), escape(where), escape(sequence.alike)]
    return "<br>".join(filter(None, lines))


def _snippet(sequence: SequenceView, strongest: float) -> str:
    units, influence = sequence.text.units, sequence.influence
    start, stop = excerpt(units, influence, _SNIPPET)
    parts = ["…"] if start else []
    room = 2 * _SNIPPET
    for number in range(start, stop):
        piece = clip(units[number], max(room, 2))
        room -= len(piece)
        share = influence[number] / strongest if influence and strongest else 0.0
        tag = "" if abs(share) < _STRONG else "b" if share > 0 else "i"
        parts.append(_set_off(piece, tag))
    return "".join([*parts, "…" if stop < len(units) else ""])


def _set_off(piece: str, tag: str) -> str:
    body = piece.strip(" ")
    if not tag or not body:
        return escape(piece)
    left = piece[: len(piece) - len(piece.lstrip(" "))]
    right = piece[len(piece.rstrip(" ")) :]
    return f"{left}<{tag}>{escape(body)}</{tag}>{right}"


def _provenance(view: RunView) -> Iterator[str]:
    yield from ("", "## How it was computed", "", "| | | |", "|---|---|---|")
    for fact in view.provenance.facts:
        yield f"| {escape(fact.label)} | {escape(fact.value)} | {escape(fact.note)} |"
    yield ""
    commands = [record.command or record.stage for record in view.provenance.stages]
    for command in [*commands, view.provenance.command]:
        # Indented code: nothing in it is read as Markdown, and it cannot be ended from within.
        yield f"    {one_line(command)}"
    yield from ("", "## What to keep in mind", "")
    for caveat in view.provenance.caveats:
        yield f"- {escape(caveat)}"
