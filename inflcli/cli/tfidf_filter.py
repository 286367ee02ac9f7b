"""`inflcli tfidf-filter`."""

from __future__ import annotations

from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import SCORERS, TfidfConfig

NAME = "tfidf-filter"
PANEL = common.PIPELINE


def command(
    corpus: common.Corpus,
    queries: common.QueryFile,
    out: common.Out,
    top: Annotated[int, typer.Option("--top", min=1, help="Candidates a query.")] = 10_000,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            help="paper: TF-IDF, streaming. okapi, l, plus: BM25, for a corpus that fits in "
            "memory.",
        ),
    ] = "paper",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Where the corpus's tokenizer is now, if not where prepare found it.",
            show_default=False,
        ),
    ] = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Find the training sequences that share the most telling tokens with each query.

    A scan of these candidates costs much less than one of the whole corpus.

    Example: inflcli tfidf-filter --corpus run/corpus --queries q.jsonl --out run/candidates
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    from inflcli.stages.tfidf_filter import tfidf_filter

    config = TfidfConfig(top=top, scorer=common.choice("scorer", scorer, SCORERS))
    runtime = common.runtime(overwrite=overwrite)
    common.finish(tfidf_filter(corpus, queries, out, config, runtime, tokenizer), as_json)
