"""`inflcli merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common

NAME = "merge"
PANEL = common.PIPELINE


def command(
    out: Annotated[Path, typer.Argument(help="The --out that the shards were given.")],
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Join the shards of fit-factors, scan or attribute to one artifact.

    Factors take two rounds: the shards' covariances are merged to eigenvectors, for which the same
    shards, run again, add up the corrected eigenvalues, which are merged to the factors.

    Example: inflcli merge run/scan
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    runtime = common.runtime(overwrite=overwrite)
    from inflcli.stages.merge import merge

    common.finish(merge(out, runtime), as_json)
