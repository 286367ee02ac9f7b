"""Figures for papers, each as PNG and SVG: how a query's influence is spread over sequences, layers
and tokens."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from inflcli.errors import BadInput
from inflcli.report.model import Distribution, LayerProfile, QueryView, RunView, SequenceView
from inflcli.report.text import clip, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"
_PLUS, _MINUS, _INK = "#b3261e", "#0b6e70", "#1f2430"
_TOKENS = 48
"""Most tokens of a heat map, around the strongest."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "inflcli",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def render(view: RunView) -> dict[str, bytes]:
    """Files by name. Raises BadInput where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput(
            "--format figures needs the package matplotlib", "pip install 'inflcli[figures]'"
        ) from error
    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A glyph that the font lacks is drawn as a box, and no news.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        for number, query in enumerate(view.queries, 1):
            for name, figure in _figures(view, query):
                files |= _saved(f"query-{number}-{name}", figure)
        curve = _low_rank(view)
        if curve is not None:
            files |= _saved("low-rank", curve)
    return files


def _saved(name: str, figure: Figure) -> dict[str, bytes]:
    files = {}
    for kind in ("png", "svg"):
        out, date = io.BytesIO(), {"Date": None} if kind == "svg" else None
        figure.savefig(out, format=kind, dpi=200, metadata=date)
        files[f"{FOLDER}/{name}.{kind}"] = out.getvalue()
    return files


def _low_rank(view: RunView) -> Figure | None:
    """What compression costs: 1 - Pearson with the run against bytes a query, of the compared runs
    that differ in nothing else; None where there is none."""
    from matplotlib.figure import Figure

    points = []
    for place, run in enumerate(view.compared):
        both = [query.comparisons[place] for query in view.queries]
        known = [one.pearson for one in both if one is not None and one.pearson is not None]
        if run.only_compressed_otherwise and known:
            points.append((run.bytes, 1 - min(known), 1 - statistics.fmean(known)))
    if not points:
        return None
    figure = Figure(figsize=(3.3, 2.4))
    axes = figure.subplots()
    sizes, worst, mean = np.array(sorted(points)).T
    axes.loglog(sizes / 1e3, worst, "o-", color=_PLUS, label="worst query")
    axes.loglog(sizes / 1e3, mean, "o-", color=_MINUS, label="mean")
    axes.set(xlabel="kB a query", ylabel="1 \N{MINUS SIGN} Pearson with this run")
    axes.legend(frameon=False)
    return figure


def _figures(view: RunView, query: QueryView) -> Iterator[tuple[str, Figure]]:
    from matplotlib.figure import Figure

    if query.distribution is not None:
        for name, draw in (("survival", _survival), ("concentration", _concentration)):
            figure = Figure(figsize=(3.3, 2.4))
            draw(figure.subplots(), query.distribution)
            yield name, figure
    figure = Figure(figsize=(3.3, 0.9 + 0.2 * len(view.group_names)))
    _profile(figure.subplots(), query.profile)
    yield "layers", figure
    attributed = [one for one in query.sequences if one.by_group is not None]
    if attributed:
        strongest = max(attributed, key=lambda one: abs(one.score))
        start, stop = _around(strongest)
        figure = Figure(figsize=(0.9 + 0.16 * (stop - start), 1.2 + 0.16 * len(view.group_names)))
        _heat(figure, view, strongest, start, stop)
        yield "tokens", figure


def _survival(axes: Axes, found: Distribution) -> None:
    scores, counts = np.array(found.survival).T
    axes.loglog(scores, counts / found.scanned, ".", color=_PLUS, markersize=3)
    tail = found.tail
    if tail is not None:
        along = np.geomspace(tail.x_min, scores.max(), 50)
        law = tail.count / found.scanned * (along / tail.x_min) ** -(tail.alpha - 1)
        label = f"power law, α = {tail.alpha:.2f} ± {tail.error:.2f} (p = {tail.p_value:.2f})"
        axes.loglog(along, law, "--", color=_INK, linewidth=1, label=label)
        axes.legend(frameon=False)
    axes.set(xlabel="influence", ylabel="share of sequences with as much")


def _concentration(axes: Axes, found: Distribution) -> None:
    shares, parts = np.array(found.curve).T
    axes.semilogx(shares, parts, color=_PLUS)
    if found.candidates is not None:
        axes.plot(*found.candidates, "o", color=_INK, fillstyle="none", label="TF-IDF candidates")
        axes.legend(frameon=False)
    axes.set(xlabel="share of sequences, the top first", ylabel="part of the positive influence")
    axes.set_ylim(0, 1.02)


def _profile(axes: Axes, profile: LayerProfile) -> None:
    places, top = np.arange(len(profile.names)), profile.tops[-1]
    for side, values, colour, name in (
        (0.2, top.positive, _PLUS, "raise"),
        (-0.2, top.negative, _MINUS, "lower"),
    ):
        total = sum(map(abs, values)) or 1.0
        label = f"{name} (top {top.count})"
        axes.barh(places + side, np.array(values) / total, 0.38, color=colour, label=label)
    axes.axvline(0, color=_INK, linewidth=0.6)
    axes.set_yticks(places, profile.names)
    axes.set_xlabel("share of the influence")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _around(view: SequenceView) -> tuple[int, int]:
    """The units of a heat map."""
    assert view.influence is not None
    peak, count = int(np.abs(view.influence).argmax()), len(view.text.units)
    start = max(0, min(peak - _TOKENS // 2, count - _TOKENS))
    return start, min(count, start + _TOKENS)


def _heat(figure: Figure, view: RunView, shown: SequenceView, start: int, stop: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    assert shown.by_group is not None
    axes, values = figure.subplots(), shown.by_group[:, start:stop]
    most = float(np.abs(values).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("influence", [_MINUS, "#ffffff", _PLUS])
    drawn = axes.imshow(values, cmap=colours, vmin=-most, vmax=most, aspect="auto", origin="lower")
    names = [clip(one_line(unit), 16) for unit in shown.text.units[start:stop]]
    axes.set_xticks(range(len(names)), names, rotation=90, family="monospace", parse_math=False)
    axes.set_yticks(range(len(view.group_names)), view.group_names)
    figure.colorbar(drawn, ax=axes, label="influence", shrink=0.9)
