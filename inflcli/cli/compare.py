"""`inflcli compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from inflcli import console
from inflcli.cli import common
from inflcli.report.text import one_line

NAME = "compare"
PANEL = common.INSPECT


def command(
    first: Annotated[Path, typer.Argument(help="A scan.")],
    second: Annotated[
        Path,
        typer.Argument(help="Another of the same corpus: by another method, rank, dtype or model."),
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Sequences a query whose overlap is counted.")
    ] = 100,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Say how far two scans agree: Pearson, Spearman, and the overlap of the top sequences.

    Over the sequences that both scored; queries are matched by their ids.

    Example: inflcli compare run/scan other-run/scan
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    from inflcli.stages.compare import compare

    found = compare(first, second, top_k)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not quiet:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("query", overflow="fold")
    for name in ("sequences", "Pearson", "Spearman", "of the top", "shared"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["queries"]:
        table.add_row(
            Text(one_line(row["query"])),
            f"{row['count']:,}",
            _number(row["pearson"]),
            _number(row["spearman"]),
            f"{row['k']:,}",
            _percent(row["overlap"]),
        )
    mean = found["mean"]
    table.add_section()
    table.add_row(
        "mean",
        "",
        _number(mean["pearson"]),
        _number(mean["spearman"]),
        "",
        _percent(mean["overlap"]),
    )
    console.stdout.print(table)
    for side in ("first", "second"):
        left = found[f"only_{side}"]
        if left:
            console.stdout.print(f"only in {found[side]}: {', '.join(left)}", markup=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
