"""How right each estimator is: a table for a terminal, and a figure for a paper."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inflcli.errors import BadInput

_BAR, _DOT, _INK = "#0b6e70", "#b3261e", "#1f2430"
_TITLES = {
    "ggn": "Exact damped Gauss-Newton solve",
    "pbrf": "Proximal Bregman response",
    "lds": "Linear datamodelling score (retraining on half subsets)",
    "topk": "Removal of the top k (retraining without them)",
}


def render(found: Mapping[str, Any]) -> RenderableType:
    """A table for every ground truth, of what `validation.json` holds."""
    parts: list[RenderableType] = []
    for truth, about in found["truths"].items():
        title = Text(_TITLES[truth], style="bold")
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        columns = _COLUMNS[truth]
        table.add_column("estimator", no_wrap=True)
        for heading, _ in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, estimate in found["estimators"].items():
            against = estimate["against"].get(truth)
            if against is not None:
                row = [show(against, estimate) for _, show in columns]
                table.add_row(name, *row)
        parts += [table, Text(f"{about['summary']}\n", style="dim")]
    return Group(*parts)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(found: Mapping[str, Any]) -> str:
    return f"{_number(found['mean'])} ({_number(found['min'])})"


def _seconds(estimate: Mapping[str, Any]) -> str:
    return _number(sum(estimate["seconds"].values()), 1)


_CORRELATION: list[tuple[str, Any]] = [
    ("Pearson mean (min)", lambda against, _: _spread(against["pearson"])),
    ("Spearman mean (min)", lambda against, _: _spread(against["spearman"])),
    ("seconds", lambda _, estimate: _seconds(estimate)),
]
_COLUMNS: dict[str, list[tuple[str, Any]]] = {
    "ggn": _CORRELATION,
    "pbrf": _CORRELATION,
    "lds": [
        ("LDS", lambda against, _: _number(against["mean"])),
        ("95 %", lambda against, _: " to ".join(map(_number, against["interval"]))),
        ("seconds", lambda _, estimate: _seconds(estimate)),
    ],
    "topk": [
        ("k: rise of the loss", lambda against, _: _rises(against["rise"])),
        ("of random k", lambda against, _: _rises(against["random"])),
    ],
}


def _rises(found: Mapping[str, float]) -> str:
    return ", ".join(f"{k}: {_number(value)}" for k, value in found.items())


def figure(found: Mapping[str, Any]) -> dict[str, bytes]:
    """The correlations by query and estimator and what each costs, as PNG and SVG, by name.

    Raises BadInput where matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(
            "the figure needs the package matplotlib", "pip install 'inflcli[figures]'"
        ) from error
    from inflcli.report.figures import STYLE

    truths = [name for name in found["truths"] if name != "topk"]
    names = list(found["estimators"])
    with rc_context(STYLE):
        drawn = Figure(figsize=(2.6 * (len(truths) + 1) + 0.8, 0.9 + 0.24 * len(names)))
        panels = drawn.subplots(1, len(truths) + 1, sharey=True, squeeze=False)[0]
        places = range(len(names))
        for axes, truth in zip(panels, truths, strict=False):
            for place, name in enumerate(names):
                against = found["estimators"][name]["against"].get(truth)
                if against is not None:
                    _values(axes, place, against["pearson"] if truth != "lds" else against)
            axes.axvline(0, color=_INK, linewidth=0.6)
            label = "LDS (Spearman)" if truth == "lds" else f"Pearson with {truth.upper()}"
            axes.set(xlabel=label)
        seconds = [sum(found["estimators"][name]["seconds"].values()) for name in names]
        panels[-1].barh(places, [max(one, 1e-3) for one in seconds], 0.6, color=_BAR)
        panels[-1].set(xscale="log", xlabel=f"seconds, {len(found['queries'])} measurements")
        panels[0].set_yticks(places, names)
        panels[0].invert_yaxis()
        return _saved(drawn)


def _values(axes: Any, place: int, values: Mapping[str, Any]) -> None:
    by_query: Sequence[float] = [one for one in values["by_query"] if one is not None]
    axes.barh(place, values["mean"] or 0.0, 0.6, color=_BAR)
    axes.plot(by_query, [place] * len(by_query), ".", color=_DOT, markersize=3)


def _saved(drawn: Any) -> dict[str, bytes]:
    files = {}
    for kind in ("png", "svg"):
        out, date = io.BytesIO(), {"Date": None} if kind == "svg" else None
        drawn.savefig(out, format=kind, dpi=200, metadata=date)
        files[f"validation.{kind}"] = out.getvalue()
    return files
