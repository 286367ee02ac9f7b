"""`inflcli attribute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import DTYPES, AttributeConfig
from inflcli.errors import BadInput

NAME = "attribute"
PANEL = common.PIPELINE
_TOP_K = AttributeConfig.top_k


def command(
    model: common.Model,
    queries: common.Queries,
    out: common.Out,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="The corpus that was scanned.")
    ] = None,
    scan: Annotated[Path | None, typer.Option("--scan", help="Scores made by scan.")] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(
            "--sequences",
            help="In place of a corpus and its scan: texts of your own, as prepare reads them, "
            "each a sequence. --out is then a run, for report --run.",
        ),
    ] = None,
    seq_len: Annotated[
        int, typer.Option("--seq-len", min=2, help="Of --sequences: tokens of each at most.")
    ] = 512,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Sequences of each sign per query.",
            show_default=f"{_TOP_K}; of --sequences all",
        ),
    ] = None,
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
        top_k=top_k or _TOP_K,
        counterfactual=counterfactual,
        dtype=common.choice("dtype", dtype, DTYPES),
        shard=common.shard(shard),
    )
    runtime = common.runtime(
        device=device, batch_size=batch_size, overwrite=overwrite, device_map=device_map
    )
    if sequences is not None:
        if corpus is not None or scan is not None or config.shard is not None:
            raise BadInput("--sequences goes without --corpus, --scan and --shard")
        from inflcli.stages.attribute_sequences import attribute_sequences

        done = attribute_sequences(
            model, queries, sequences, out, config, runtime, seq_len=seq_len, top_k=top_k
        )
    else:
        if corpus is None or scan is None:
            missing = "--corpus" if corpus is None else "--scan"
            raise BadInput(f"{missing} is missing", "or give texts of your own by --sequences")
        from inflcli.stages.attribute import attribute

        out = config.shard.folder(out) if config.shard else out
        done = attribute(model, queries, corpus, scan, out, config, runtime)
    common.finish(done, as_json)
