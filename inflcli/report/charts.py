"""Geometry of the page's charts: from data to positions, for the template to draw as SVG.

Horizontal positions are percentages, so that a chart takes the width that there is and its
letters keep their size; heights are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inflcli.report.model import ComparisonView, Distribution, Histogram, LayerProfile, SequenceView

HEIGHT = 132
"""Pixels of the histogram's plot, without its axis."""
_DEEPEST = 1e-3
"""Scores of the survival function, as a share of the highest."""
_FLOOR = 0.6
"""The count at which a bar would have no height: one sequence must still be seen."""


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    height: float
    candidate_height: float
    positive: bool
    low: float
    high: float
    count: int
    candidates: int | None


@dataclass(frozen=True)
class Tick:
    """A label at a position: per cent along x, or pixels from the bottom along y."""

    at: float
    value: float


@dataclass(frozen=True)
class HistogramChart:
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    zero: float
    shown: Sequence[Tick]
    """Where the sequences of the page lie."""


@dataclass(frozen=True)
class SurvivalChart:
    """How many sequences score at least so high, both on logarithmic axes."""

    points: Sequence[tuple[float, float]]
    """Per cent along x, pixels from the bottom along y."""
    line: tuple[float, float, float, float] | None
    """The fitted power law, from its x_min on: both ends."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


@dataclass(frozen=True)
class ProfileBars:
    """Shares of the influence of the top sequences of both signs, and the bars that show them."""

    positive: float
    negative: float
    positive_x: float
    positive_width: float
    negative_x: float
    negative_width: float


@dataclass(frozen=True)
class ProfileRow:
    """A depth group; bars for each number of top sequences."""

    name: str
    tops: Sequence[ProfileBars]


def histogram_chart(histogram: Histogram, shown: Sequence[SequenceView]) -> HistogramChart:
    """Bars on a logarithmic count axis."""
    edges = histogram.edges
    low, span = edges[0], edges[-1] - edges[0]

    def along(value: float) -> float:
        return 100 * min(max((value - low) / span, 0.0), 1.0)

    top = max(max(histogram.counts), 10)
    bars = []
    for place, count in enumerate(histogram.counts):
        if count == 0:
            continue
        left, right = edges[place], edges[place + 1]
        inside = None if histogram.candidates is None else histogram.candidates[place]
        bars.append(
            Bar(
                x=along(left),
                width=along(right) - along(left),
                height=_height(count, top),
                candidate_height=_height(inside or 0, top),
                positive=left + right > 0,
                low=left,
                high=right,
                count=count,
                candidates=inside,
            )
        )
    decades = [10**power for power in range(int(math.log10(top)) + 1)]
    return HistogramChart(
        bars=bars,
        x_ticks=[Tick(along(value), value) for value in nice_ticks(edges[0], edges[-1])],
        y_ticks=[Tick(_height(value, top), value) for value in decades],
        zero=along(0.0),
        shown=[Tick(along(view.score), view.score) for view in shown],
    )


def survival_chart(distribution: Distribution) -> SurvivalChart:
    """The scores that reach down to a thousandth of the highest."""
    highest = distribution.survival[0][0]
    points = [(v, n) for v, n in distribution.survival if v >= highest * _DEEPEST]
    low, high = points[-1][0], highest
    span = math.log(high / low) or 1.0
    top = max(points[-1][1], 10)

    def along(value: float) -> float:
        return 100 * math.log(value / low) / span

    line, tail = None, distribution.tail
    if tail is not None:
        left = max(tail.x_min, low)
        ends = [tail.count * (value / tail.x_min) ** -(tail.alpha - 1) for value in (left, high)]
        line = (along(left), _height(ends[0], top), along(high), max(_height(ends[1], top), 0.0))
    decades = [10**power for power in range(int(math.log10(top)) + 1)]
    return SurvivalChart(
        points=[(along(value), _height(count, top)) for value, count in points],
        line=line,
        x_ticks=[Tick(along(value), value) for value in _log_ticks(low, high)],
        y_ticks=[Tick(_height(value, top), value) for value in decades],
    )


@dataclass(frozen=True)
class ConcentrationChart:
    """Which part of the positive influence the top sequences hold, by their share, on a
    logarithmic axis."""

    points: Sequence[tuple[float, float]]
    """Per cent along x, pixels from the bottom along y."""
    candidates: tuple[float, float] | None
    """Where the TF-IDF candidates are."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def concentration_chart(distribution: Distribution) -> ConcentrationChart:
    """From one sequence to all of them."""
    lowest = distribution.curve[0][0]
    span = math.log(1 / lowest) or 1.0

    def along(share: float) -> float:
        return 100 * math.log(share / lowest) / span

    powers = range(math.ceil(math.log10(lowest) - 1e-9), 1)
    found = distribution.candidates
    return ConcentrationChart(
        [(along(share), HEIGHT * part) for share, part in distribution.curve],
        None if found is None else (along(found[0]), HEIGHT * found[1]),
        [Tick(along(10.0**power), 10.0**power) for power in powers],
        [Tick(HEIGHT * part, part) for part in (0.25, 0.5, 0.75, 1.0)],
    )


@dataclass(frozen=True)
class ScatterChart:
    """Ranks in two runs, both on logarithmic axes, the first at the left and at the bottom."""

    points: Sequence[tuple[float, float, int, int, int]]
    """Per cent along x, pixels from the bottom along y; sequence, and both ranks."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    corner: tuple[float, float]
    """Where the top k of both end."""


def scatter_chart(comparison: ComparisonView) -> ScatterChart:
    """The sequences in the top k of either run."""
    last = max(comparison.count, 2)

    def along(rank: float) -> float:
        return math.log(rank) / math.log(last)

    ticks = [10**power for power in range(int(math.log10(last)) + 1)]
    return ScatterChart(
        [(100 * along(x), HEIGHT * along(y), n, x, y) for n, x, y in comparison.points],
        [Tick(100 * along(tick), tick) for tick in ticks],
        [Tick(HEIGHT * along(tick), tick) for tick in ticks],
        (100 * along(comparison.k + 0.5), HEIGHT * along(comparison.k + 0.5)),
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within low..high; fewer where there would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high < 30 * low else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _height(count: float, top: int) -> float:
    if count <= 0:
        return 0.0
    return HEIGHT * math.log(count / _FLOOR) / math.log(top / _FLOOR)


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round values within low..high, zero among them if it is inside."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def profile_rows(profile: LayerProfile) -> list[ProfileRow]:
    """One row a depth group, the highest first; bars start at the middle."""
    columns = [_profile_bars(_shares(top.positive), _shares(top.negative)) for top in profile.tops]
    rows = zip(profile.names, *columns, strict=True)
    return [ProfileRow(name, bars) for name, *bars in rows][::-1]


def _profile_bars(positive: Sequence[float], negative: Sequence[float]) -> list[ProfileBars]:
    widest = max(map(abs, [*positive, *negative, 1e-9]))
    found = []
    for shares in zip(positive, negative, strict=True):
        spans = [50 * abs(share) / widest for share in shares]
        places = [
            50.0 - (span if share < 0 else 0.0) for share, span in zip(shares, spans, strict=True)
        ]
        found.append(ProfileBars(*shares, places[0], spans[0], places[1], spans[1]))
    return found


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(map(abs, values))
    return [value / total if total else 0.0 for value in values]
