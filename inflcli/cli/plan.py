"""`inflcli plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import psutil
import typer

from inflcli import console
from inflcli.cli import common
from inflcli.cli.precondition import (
    Refine,
    RefineSequences,
    RefineSolver,
    compression,
    damped,
    refinement,
)
from inflcli.config import (
    CURVATURES,
    DTYPES,
    LABELS,
    PRECISIONS,
    ROUTES,
    AttributeConfig,
    FitFactorsConfig,
    PlanConfig,
    PreconditionConfig,
    ScanConfig,
)
from inflcli.errors import BadInput

NAME = "plan"
PANEL = common.INSPECT


def command(
    model: common.Model,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="A corpus made by prepare.", show_default=False)
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option("--sequences", min=1, help="Without a corpus: how many sequences."),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq-len", min=2, help="Without a corpus: how many tokens each of them has."
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="JSONL with id, prompt, completion on each line."),
    ] = None,
    n_queries: Annotated[
        int | None,
        typer.Option("--n-queries", min=1, help="Without a query file: how many queries."),
    ] = None,
    run: Annotated[
        Path, typer.Option("--run", help="The folder to fill, whose disk must have the space.")
    ] = Path("."),
    curvature: Annotated[
        str, typer.Option("--curvature", help="Of fit-factors: ekfac, ec-shampoo, kfac, identity.")
    ] = "ekfac",
    modules: Annotated[
        str, typer.Option("--modules", help="Of fit-factors: mlp, attention, all, or patterns.")
    ] = "mlp",
    blocks: Annotated[
        int, typer.Option("--blocks", min=1, help="Of fit-factors: blocks of each covariance.")
    ] = 1,
    labels: Annotated[
        str, typer.Option("--labels", help="Of fit-factors: sampled, or true.")
    ] = "sampled",
    label_samples: Annotated[
        int,
        typer.Option(
            "--label-samples", min=1, max=1024, help="Of fit-factors: label sets a sequence."
        ),
    ] = 1,
    max_sequences: Annotated[
        int | None,
        typer.Option("--max-sequences", min=1, help="Of fit-factors: fit on this many."),
    ] = None,
    splits: Annotated[
        int, typer.Option("--splits", min=1, max=64, help="Of fit-factors: sums kept apart.")
    ] = FitFactorsConfig.splits,
    rank: Annotated[
        str | None, typer.Option("--rank", help="Of precondition: a rank, or full.")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", help="Of precondition: the share of a query's energy to keep."),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option("--max-rank", min=1, help="Of precondition, with --keep.")
    ] = None,
    damping_factor: Annotated[
        float | None, typer.Option("--damping-factor", help="Of precondition: a share of mean Λ.")
    ] = None,
    damping: Annotated[
        str | None,
        typer.Option(
            "--damping", help="Of precondition: absolute, or auto.", metavar="NUMBER|auto"
        ),
    ] = None,
    refine: Refine = None,
    refine_solver: RefineSolver = None,
    refine_sequences: RefineSequences = None,
    route: Annotated[
        str, typer.Option("--route", help="Of scan: auto, dense, factored or shared.")
    ] = "auto",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Of scan: only some tracked modules.")
    ] = None,
    token_scores: Annotated[
        bool, typer.Option("--token-scores", help="Of scan: also the score of every token.")
    ] = False,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Of attribute: sequences of each sign per query.")
    ] = 20,
    counterfactual: Annotated[
        bool,
        typer.Option("--counterfactual", help="Of attribute: two more attributions by token."),
    ] = False,
    shards: Annotated[
        int,
        typer.Option(
            "--shards",
            min=1,
            help="Plan fit-factors, scan and attribute in so many parts (--shard I/N): times are "
            "one part's.",
        ),
    ] = 1,
    no_calibrate: Annotated[
        bool,
        typer.Option(
            "--no-calibrate",
            help="Read the model's config only, and guess how fast the device is. The device "
            "need not be here.",
        ),
    ] = False,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = "auto",
    max_memory: common.MaxMemory = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Say what a run will cost: FLOPs, time, peak memory and disk of each stage, and the routes.

    Loads the model and times a handful of batches, unless told not to. Warns of what does not fit,
    with the option that mends it. Writes nothing.

    Example: inflcli plan --model gpt2 --corpus run/corpus --n-queries 20
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    _one_of("corpus", corpus, "sequences", sequences)
    _one_of("queries", queries, "n-queries", n_queries)
    if (sequences is None) != (seq_len is None):
        raise BadInput("--sequences and --seq-len go together")
    common.choice("curvature", curvature, CURVATURES)
    config = PlanConfig(
        fit=FitFactorsConfig(
            curvature=curvature,
            modules=modules,
            blocks=blocks,
            labels=common.choice("labels", labels, LABELS),
            label_samples=label_samples,
            max_sequences=max_sequences,
            splits=splits,
        ),
        precondition=PreconditionConfig(
            curvature=curvature,
            **compression(rank, keep, max_rank),
            **damped(damping_factor, damping),
            **refinement(refine, refine_solver, refine_sequences),
        ),
        scan=ScanConfig(
            route=common.choice("route", route, ROUTES),
            layers=layers,
            token_scores=token_scores,
        ),
        attribute=AttributeConfig(top_k=top_k, counterfactual=counterfactual),
        sequences=sequences,
        seq_len=seq_len,
        n_queries=n_queries,
        shards=shards,
        calibrate=not no_calibrate,
    ).with_arithmetic(
        common.choice("dtype", dtype, DTYPES), common.choice("precision", precision, PRECISIONS)
    )
    runtime = common.runtime(device=device, batch_size=batch_size, max_memory=max_memory)
    begun = psutil.Process().create_time()
    from inflcli.report.plan import show_plan
    from inflcli.stages.plan import plan

    found = plan(model, corpus, queries, run, config, runtime, begun)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show_plan(found, console.stdout, verbose=verbose, quiet=quiet)
    for warning in found["warnings"]:
        console.warn(warning)


def _one_of(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise BadInput(f"give either --{first} or --{second}")
