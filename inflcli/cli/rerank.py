"""`inflcli rerank`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import ScanConfig

NAME = "rerank"
PANEL = common.PIPELINE


def command(
    scan: Annotated[Path, typer.Argument(help="A scan.")],
    out: common.Out,
    layers: Annotated[
        str,
        typer.Option(
            "--layers", help="lower, middle, upper, i-j, or a pattern: whole depth groups of it."
        ),
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Sequences of each sign kept per query.")
    ] = ScanConfig.top_k,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Rank a scan's sequences by some layers alone, without another pass.

    The result is a scan, for attribute and report.

    Example: inflcli rerank run/scan --layers upper --out upper/scan
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    from inflcli.stages.rerank import rerank

    common.finish(rerank(scan, out, layers, top_k, common.runtime(overwrite=overwrite)), as_json)
