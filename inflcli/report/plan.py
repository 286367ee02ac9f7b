"""A plan on the terminal: the model, a row a stage, the routes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_UNKNOWN = "–"


def show_plan(found: dict[str, Any], console: Console, *, verbose: bool, quiet: bool) -> None:
    """Print what `stages.plan.plan` returned; with `quiet` only the table."""
    if not quiet:
        for line in _header(found):
            console.print(line, markup=False)
        console.print()
    console.print(_table(found))
    if quiet:
        return
    console.print()
    for line in _notes(found, verbose):
        console.print(line, markup=False)


def _header(found: dict[str, Any]) -> list[str]:
    tracked = found["tracked"]
    corpus = found["corpus"] or "imagined sequences"
    return [
        f"{found['model']}: {_count(found['parameters'])} parameters, {tracked['percent']:.1f} % "
        f"tracked, in {tracked['modules']} modules ({tracked['wanted']})",
        f"{found['device']}, {found['dtype']}, products {found['precision']}",
        f"{corpus}: {found['sequences']:,} of {found['mean_tokens']:.0f} tokens, "
        f"{found['fit_sequences']:,} for the fit; {found['queries']:,} queries",
    ]


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in ("FLOPs", "time", "peak memory", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found["stages"]:
        most = "≤ " * one["at_most"]
        table.add_row(
            one["stage"],
            _flops(one["flops"]),
            duration(one["seconds"]),
            _bytes(one["memory"], most),
            _bytes(one["disk"], most),
        )
    totals, most = found["totals"], "≤ " * any(one["at_most"] for one in found["stages"])
    table.add_section()
    table.add_row(
        "all",
        _flops(totals["flops"]),
        duration(totals["seconds"]),
        _bytes(totals["memory"], most),
        _bytes(totals["disk"], most),
        style="bold",
    )
    return table


def _notes(found: dict[str, Any], verbose: bool) -> list[str]:
    routes = ", ".join(f"{name} for {count}" for name, count in found["routes"].items())
    lines = [f"routes of the scan: {routes} of {found['tracked']['modules']} modules"]
    if found["shards"] > 1:
        lines.append(f"times are those of one of {found['shards']} shards")
    if found["calibrated"]:
        lines.append(f"calibrated on this machine, in {duration(found['seconds_planning'])}")
    else:
        lines.append(
            "not calibrated: times are rough guesses, and queries are what they are at most"
        )
    if found["query_file"] is None:
        lines.append("queries are imagined: what they keep differs, so give --queries if you can")
    lines.append(f"{_bytes(found['disk_free'])} are free on the disk")
    if verbose:
        lines += [f"  {name}: {route}" for name, route in found["route_of"].items()]
        for one in found["stages"]:
            if one["parts"]:
                parts = ", ".join(f"{name} {duration(s)}" for name, s in one["parts"].items())
                lines.append(f"  {one['stage']}: {parts}")
        lines += [f"  measured on {value:,.0f} {name}" for name, value in found["sampled"].items()]
    return lines


def duration(seconds: float | None) -> str:
    """Seconds for a person: 4.2 s, 3 min 20 s, 5.1 h, 3.4 days."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.1f} days"


def _flops(count: float | None) -> str:
    return _UNKNOWN if count is None else _scaled(count, ("", "k", "M", "G", "T", "P", "E"), 1000.0)


def _count(count: float) -> str:
    return _scaled(count, ("", " thousand", " million", " billion", " trillion"), 1000.0)


def _bytes(count: float | None, before: str = "") -> str:
    if count is None:
        return _UNKNOWN
    return before + _scaled(count, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"), 1024.0)


def _scaled(count: float, units: tuple[str, ...], step: float) -> str:
    unit = 0
    while count >= 0.9995 * step and unit < len(units) - 1:
        count, unit = count / step, unit + 1
    return f"{count:,.0f}{units[0]}" if unit == 0 else f"{count:.1f}{units[unit]}"
