"""`inflcli report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inflcli import console
from inflcli.cli import common
from inflcli.config import ReportConfig
from inflcli.errors import BadInput

NAME = "report"
PANEL = common.PIPELINE
_FORMATS = ("html", "terminal", "markdown", "jsonl", "parquet", "figures")
_TOP_K, _TERMINAL_TOP = 20, (5, 2)


def command(
    run: Annotated[
        Path, typer.Option("--run", help="The folder that holds corpus, queries, scan and more.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write; not needed for the terminal alone."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"{', '.join(_FORMATS)}; give it several times.",
            show_default="html",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Sequences of each sign per query.",
            show_default=f"{_TOP_K}; on the terminal {_TERMINAL_TOP[0]} and {_TERMINAL_TOP[1]}",
        ),
    ] = None,
    dataset_size: Annotated[
        int | None,
        typer.Option(
            "--dataset-size",
            min=1,
            help="Sequences that the model was trained on: shows scores in nats, too.",
        ),
    ] = None,
    skip_spurious: Annotated[
        bool,
        typer.Option(
            "--skip-spurious",
            help="Leave out sequences that one token or two carry, which are marked otherwise.",
        ),
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare",
            help="Another run over the same corpus, to hold against this one: by another method, "
            "such as precondition --curvature identity, or model; give it several times.",
        ),
    ] = None,
    pager: Annotated[
        bool,
        typer.Option(
            "--pager/--no-pager", help="Page what is longer than the terminal, through $PAGER."
        ),
    ] = True,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="The corpus's tokenizer, if it has moved."),
    ] = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Show what a run found: a web page, a table on the terminal or in a file, figures.

    Example: inflcli report --run run --out run/report --format html --format terminal
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    wanted = tuple(common.choice("format", name, _FORMATS) for name in formats or ["html"])
    shows = "terminal" in wanted
    if shows and as_json:
        raise BadInput("--json and --format terminal both write to stdout", "choose one")
    if out is None and set(wanted) != {"terminal"}:
        raise BadInput("--out is missing", "only --format terminal alone goes without it")
    config = ReportConfig(wanted, top_k or _TOP_K, dataset_size, skip_spurious)
    from inflcli.stages.report import report

    runtime = common.runtime(overwrite=overwrite)
    done = report(run, out, config, runtime, tokenizer, compare or [])
    if shows and done.view is not None:
        from inflcli.report.terminal import render

        limits = (top_k, top_k) if top_k else _TERMINAL_TOP
        with console.paged(pager):
            console.stdout.print(render(done.view, limits))
    _finish(done.result, [str(path) for path in done.files], as_json)


def _finish(result: dict[str, Any] | None, files: list[str], as_json: bool) -> None:
    if result is None:
        return
    common.finish({**result, "files": files}, as_json)
    if not as_json:
        for path in files:
            # Bare, so that a script or a double click can take it; soft wrap keeps it whole.
            console.stdout.print(path, markup=False, highlight=False, soft_wrap=True)
