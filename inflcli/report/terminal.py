"""The run as tables for a terminal.

Everything is built from `Text` objects: a string would be read as rich's markup, and brackets in
a training text must stay brackets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from inflcli.report.excerpt import excerpt
from inflcli.report.model import (
    POSITIVE,
    SPURIOUS,
    SPURIOUS_MEANS,
    QueryView,
    RunView,
    SequenceView,
)
from inflcli.report.text import clip, one_line, place, signed

_WIDE = 120
"""From this width on the source has a column of its own."""
_LINES, _LINES_WIDE = 3, 2
_MARKED = 3
"""Strongest tokens that are marked where there are no colours."""
# Dark enough for white text, in steps: the terminal's own background may be light or dark.
_POSITIVE = ("#5a2a26", "#7d2d27", "#a42f27", "#c93328")
_NEGATIVE = ("#1f4a4c", "#1b6063", "#14797b", "#0b9294")
_STEPS = (0.15, 0.35, 0.6, 0.85)


def render(view: RunView, limits: tuple[int, int]) -> RenderableType:
    """Tables of every query; `limits` are the most positive and negative sequences of each."""
    parts: list[RenderableType] = []
    for query in view.queries:
        parts += [_heading(query), _QueryTable(view, query, limits), Text()]
    return Group(*parts, _legend(view))


def _heading(query: QueryView) -> RenderableType:
    text = Text(overflow="fold")
    text.append(one_line(clip(query.prompt, 400)))
    text.append(one_line(clip(query.completion, 200)), style="bold")
    text.append(f"   log p {query.log_p:.3f}", style="dim")
    title = Text(clip(one_line(query.id), 60), style="bold cyan")
    return Group(Rule(title, align="left", style="dim", characters="─"), text)


class _QueryTable:
    """One query's table; it is laid out when the console's width is known."""

    def __init__(self, view: RunView, query: QueryView, limits: tuple[int, int]) -> None:
        self.view, self.query, self.limits = view, query, limits

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sides = (self.query.positive, self.query.negative)
        shown = [
            sequence
            for side, limit in zip(sides, self.limits, strict=True)
            for sequence in [one for one in side if one.duplicate_of is None][:limit]
        ]
        if not shown:
            yield Text("no sequence was scanned, or all scores are zero", style="dim")
            return
        coloured = console.color_system is not None and not console.no_color
        beside = max(24, options.max_width // 5) if options.max_width >= _WIDE else 0
        table, room = self._columns(options.max_width, beside)
        for number, sequence in enumerate(shown):
            if number and shown[number - 1].sign != sequence.sign:
                table.add_section()
            budget = (room - 3) * (_LINES_WIDE if beside else _LINES)
            text = _snippet(sequence, self.query.strongest(), budget, coloured)
            where = _source(sequence, beside * 2 or room)
            cells = [where, text] if beside else [Text("\n").join([where, text])]
            table.add_row(*self._numbers(sequence), *cells)
        yield table

    def _columns(self, width: int, beside: int) -> tuple[Table, int]:
        """An empty table, and the width that its text column gets."""
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
        fixed = [("#", 3), ("influence", 9)]
        fixed += [("nats", 9)] * bool(self.view.dataset_size)
        fixed += [("tf-idf", 6)] * bool(self.view.candidates)
        for name, size in fixed:
            style = "dim" if name in ("#", "tf-idf") else ""
            table.add_column(name, justify="right", style=style, no_wrap=True, min_width=size)
        if beside:
            table.add_column("source", width=beside, overflow="fold")
        table.add_column("training text", ratio=1, overflow="fold")
        taken = sum(size + 1 for _, size in fixed) + (beside + 1 if beside else 0)
        return table, max(width - taken - 1, 10)

    def _numbers(self, sequence: SequenceView) -> Iterator[Text]:
        positive = sequence.sign == POSITIVE
        mark = SPURIOUS if sequence.spurious else ""
        yield Text(f"{'+' if positive else '-'}{sequence.rank}{mark}")
        yield Text(signed(sequence.score), style="bold red" if positive else "bold cyan")
        if self.view.dataset_size:
            yield Text(signed(sequence.nats or 0.0))
        if self.view.candidates:
            yield Text("—" if sequence.tfidf_rank is None else str(sequence.tfidf_rank))


def _source(sequence: SequenceView, room: int) -> Text:
    source = sequence.main_source()
    if source is None:
        return Text(f"sequence {sequence.text.sequence}", style="dim")
    text = Text(overflow="fold")
    name = one_line(source.document_id)
    text.append(clip(name, max(room, 24)), style="italic")
    where = one_line(place(source.file, source.line))
    if where not in name and len(name) + len(where) + 2 <= max(room, 24):
        text.append(f"  {where}", style="dim")
    if sequence.alike:
        text.append(f"  {sequence.alike}", style="dim")
    return text


def _snippet(sequence: SequenceView, strongest: float, budget: int, coloured: bool) -> Text:
    """The densest stretch of the text, its strong tokens shaded, or marked without colours."""
    units, influence = sequence.text.units, sequence.influence
    start, stop = excerpt(units, influence, budget - 2)
    marked = set() if coloured else _strongest(sequence, start, stop)
    text = Text("…" if start else "", overflow="fold")
    room = budget
    for number in range(start, stop):
        piece = clip(one_line(units[number]), max(room, 2))
        piece = piece.lstrip(" ") if number == start else piece
        room -= len(piece)
        if number in marked and influence is not None:
            left, right = ("«", "»") if influence[number] > 0 else ("‹", "›")
            body = piece.lstrip(" ") or piece
            text.append(piece[: len(piece) - len(body)] + left + body + right)
        else:
            style = _style(influence[number] if influence else 0.0, strongest)
            text.append(piece, style=style or ("dim" if number in sequence.text.special else ""))
    if stop < len(units):
        text.append("…")
    return text


def _strongest(sequence: SequenceView, start: int, stop: int) -> set[int]:
    if sequence.influence is None:
        return set()
    values = sequence.influence
    order = sorted(range(start, stop), key=lambda number: -abs(values[number]))
    return {number for number in order[:_MARKED] if values[number]}


def _style(value: float, strongest: float) -> str:
    share = abs(value) / strongest if strongest else 0.0
    level = sum(share >= step for step in _STEPS)
    if level == 0:
        return ""
    shade = (_POSITIVE if value > 0 else _NEGATIVE)[level - 1]
    # The line tells the sign without colour.
    return f"#ffffff on {shade} {'underline' if value > 0 else 'underline2'}"


def _legend(view: RunView) -> Text:
    text = Text(style="dim", overflow="fold")
    if view.shadings:
        text.append("red/«» raises", style="red")
        text.append(" the completion's log-probability, ")
        text.append("teal/‹› lowers", style="cyan")
        text.append(" it; a marked token acts by the prediction of the token after it. ")
    if any(sequence.spurious for query in view.queries for sequence in query.sequences):
        text.append(f"{SPURIOUS} {SPURIOUS_MEANS}. ")
    scanned = f"{view.scanned:,} of {view.corpus_size:,} sequences scanned"
    text.append(f"{scanned}; {_tracked(view)}")
    return text


def _tracked(view: RunView) -> str:
    facts: Sequence[str] = [
        fact.value for fact in view.provenance.facts if fact.label == "Parameters tracked"
    ]
    return f"{facts[0]} tracked." if facts else "."
