"""The command line: one module a command, which parses, builds a config and calls a stage.

Nothing here imports torch before a stage runs, so that `--help` answers at once.
"""

from __future__ import annotations

import typer

from inflcli import __version__, distributed
from inflcli.cli import (
    attribute,
    compare,
    fit_factors,
    merge,
    plan,
    precondition,
    prepare,
    report,
    rerank,
    scan,
    status,
    tfidf_filter,
    validate,
)
from inflcli.cli.edge import at_the_edge

app = typer.Typer(
    name="inflcli",
    help="Which training sequences made this language model say that?\n\n"
    "Influence functions with EK-FAC for Hugging Face causal language models, in stages that "
    "each write an artifact: prepare, fit-factors, precondition, tfidf-filter, scan, attribute, "
    "report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    prepare,
    fit_factors,
    precondition,
    tfidf_filter,
    scan,
    attribute,
    report,
    rerank,
    merge,
    plan,
    status,
    compare,
    validate,
)
for module in COMMANDS:
    shape = getattr(module, "CLASS", None)
    app.command(module.NAME, cls=shape, rich_help_panel=module.PANEL)(at_the_edge(module.command))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"inflcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """The console script."""
    try:
        app()
    except SystemExit as end:
        distributed.leave(end.code)
        raise
