"""`inflcli status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from inflcli import console
from inflcli.cli import common
from inflcli.errors import CorruptArtifact

NAME = "status"
PANEL = common.INSPECT
_COLOURS = {"complete": "green", "partial": "yellow", "stale": "yellow", "corrupt": "red"}


def command(
    run: Annotated[Path, typer.Argument(help="The folder that holds a run's artifacts.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every file's content with its SHA-256.")
    ] = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Show what a run holds: what is complete, partial, stale or corrupt, and why.

    Ends with exit code 4 if something is corrupt, and else with 0.

    Example: inflcli status run
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    from inflcli.stages.status import status

    found = status(run, verify=verify)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not quiet:
        _show(found["artifacts"], verbose)
    if any(one["state"] == "corrupt" for one in found["artifacts"]):
        raise typer.Exit(CorruptArtifact.exit_code)


def _show(artifacts: list[dict[str, Any]], verbose: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("artifact", overflow="fold")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("holds", overflow="fold")
    for one in artifacts:
        colour = _COLOURS[one["state"]]
        state = f"[{colour}]{one['state']}[/{colour}]"
        table.add_row(one["name"], one["stage"], state, _size(one["bytes"]), _holds(one))
    console.stdout.print(table)
    for one in artifacts:
        lines = one["reasons"] + (one["notes"] if verbose else [])
        for line in lines:
            console.stdout.print(f"{one['name']}: {line}", markup=False)
        if one["state"] in ("stale", "corrupt") and one["mend"]:
            console.stdout.print(f"  mend it with: {one['mend']}", markup=False, soft_wrap=True)
    unchecked = sum(len(one["notes"]) for one in artifacts)
    if unchecked and not verbose:
        console.stdout.print(f"{unchecked} inputs could not be checked: see --verbose")


def _holds(one: dict[str, Any]) -> str:
    if one["state"] == "corrupt":
        return ""
    values = one["progress"] if one["state"] == "partial" else one["counts"]
    numbers = {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not key.startswith("bytes_") and key != "total"
    }
    parts = [f"{_number(value)} {key.replace('_', ' ')}" for key, value in numbers.items() if value]
    share = _share(values)
    if share is not None:
        parts.insert(0, f"{share:.0%} done")
    if one["state"] == "partial" and not parts:
        parts = ["nothing yet"]
    return ", ".join(parts[:3])


def _share(values: dict[str, Any]) -> float | None:
    """How much of a partial artifact is done, where its stage says."""
    for done, total in (("bytes_read", "bytes_total"), ("sequences", "total")):
        if done in values and values.get(total):
            return float(values[done] / values[total])
    return None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
