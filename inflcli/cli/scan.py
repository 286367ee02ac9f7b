"""`inflcli scan`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import DTYPES, PRECISIONS, ROUTES, ScanConfig
from inflcli.errors import BadInput

NAME = "scan"
PANEL = common.PIPELINE


def command(
    model: common.Model,
    queries: common.Queries,
    corpus: common.Corpus,
    out: common.Out,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", help="Scan only these, made by tfidf-filter."),
    ] = None,
    span: Annotated[
        str, typer.Option("--range", help="Scan only sequences A to B-1, as A:B.")
    ] = ":",
    route: Annotated[
        str,
        typer.Option(
            "--route",
            help="auto (by predicted cost, per module), dense, factored; or shared, one basis for "
            "all queries: an approximation, for families of related ones.",
        ),
    ] = "auto",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="Only some tracked modules: lower, middle, upper, i-j, or a pattern."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Sequences of each sign kept per query.")
    ] = 100,
    token_scores: Annotated[
        bool,
        typer.Option("--token-scores", help="Also keep the score of every token."),
    ] = False,
    chunk_size: Annotated[
        int,
        typer.Option(
            "--chunk-size",
            min=1,
            help="Sequences that are recorded as done together, and that a process of torchrun is "
            "handed at a time.",
        ),
    ] = 256,
    shard: common.ShardOption = None,
    device: common.Device = "auto",
    device_map: common.DeviceMap = None,
    fsdp: common.Fsdp = False,
    dtype: common.Dtype = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Score training sequences against all queries in one pass.

    Example: inflcli scan --model gpt2 --queries run/queries --corpus run/corpus --out run/scan
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    start, stop = _span(span)
    config = ScanConfig(
        route=common.choice("route", route, ROUTES),
        start=start,
        stop=stop,
        layers=layers,
        top_k=top_k,
        token_scores=token_scores,
        chunk_size=chunk_size,
        dtype=common.choice("dtype", dtype, DTYPES),
        precision=common.choice("precision", precision, PRECISIONS),
        shard=common.shard(shard),
    )
    out = config.shard.folder(out) if config.shard else out
    runtime = common.runtime(
        device=device,
        batch_size=batch_size,
        overwrite=overwrite,
        max_memory=max_memory,
        device_map=device_map,
        fsdp=fsdp,
    )
    from inflcli.stages.scan import scan

    common.finish(scan(model, queries, corpus, out, config, runtime, candidates), as_json)


def _span(text: str) -> tuple[int, int | None]:
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if not found:
        raise BadInput(f"--range {text} is not of the form A:B")
    return int(found[1] or 0), int(found[2]) if found[2] else None
