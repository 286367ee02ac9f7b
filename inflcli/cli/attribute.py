"""`inflcli attribute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import DTYPES, AttributeConfig

NAME = "attribute"
PANEL = common.PIPELINE


def command(
    model: common.Model,
    queries: common.Queries,
    corpus: common.Corpus,
    scan: Annotated[Path, typer.Option("--scan", help="Scores made by scan.")],
    out: common.Out,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Sequences of each sign per query.")
    ] = 20,
    counterfactual: Annotated[
        bool,
        typer.Option(
            "--counterfactual",
            help="Two more attributions by token: of each output token by itself, and of each "
            "input token's embedding. Six times the time.",
        ),
    ] = False,
    shard: common.ShardOption = None,
    device: common.Device = "auto",
    device_map: common.DeviceMap = None,
    dtype: common.Dtype = "auto",
    batch_size: common.BatchSize = "auto",
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Split the influence of the top sequences over their tokens and the model's modules.

    Example: inflcli attribute --model gpt2 --queries run/queries --corpus run/corpus
    --scan run/scan --out run/attribution
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    config = AttributeConfig(
        top_k=top_k,
        counterfactual=counterfactual,
        dtype=common.choice("dtype", dtype, DTYPES),
        shard=common.shard(shard),
    )
    out = config.shard.folder(out) if config.shard else out
    runtime = common.runtime(
        device=device, batch_size=batch_size, overwrite=overwrite, device_map=device_map
    )
    from inflcli.stages.attribute import attribute

    common.finish(attribute(model, queries, corpus, scan, out, config, runtime), as_json)
