"""`inflcli fit-factors`."""

from __future__ import annotations

from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.config import CURVATURES, DTYPES, LABELS, PRECISIONS, FitFactorsConfig

NAME = "fit-factors"
PANEL = common.PIPELINE


def command(
    model: common.Model,
    corpus: common.Corpus,
    out: common.Out,
    curvature: Annotated[
        str,
        typer.Option(
            "--curvature",
            help="ekfac; ec-shampoo (bases from whole sequences' gradients); kfac; or identity "
            "(gradient dot product).",
        ),
    ] = "ekfac",
    modules: Annotated[
        str,
        typer.Option(
            "--modules",
            help="Tracked linear modules: mlp, attention, all, or comma-separated patterns "
            "over their names, such as '*.down_proj'.",
        ),
    ] = "mlp",
    blocks: Annotated[
        int,
        typer.Option("--blocks", min=1, help="Diagonal blocks of each covariance; 1 is exact."),
    ] = 1,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            help="sampled from the model's softmax (Fisher), or true (empirical Fisher).",
        ),
    ] = "sampled",
    label_samples: Annotated[
        int, typer.Option("--label-samples", min=1, max=1024, help="Label sets drawn per sequence.")
    ] = 1,
    max_sequences: Annotated[
        int | None,
        typer.Option("--max-sequences", min=1, help="Fit on a seeded sample of this many."),
    ] = None,
    splits: Annotated[
        int,
        typer.Option(
            "--splits",
            min=1,
            max=64,
            help="Parts of the sequences that are summed apart: two halves say how stable the "
            "factors are, and shards whose number divides this merge to the same bytes. Each "
            "takes the memory of the sums; 1 takes the least.",
        ),
    ] = FitFactorsConfig.splits,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            "--chunk-size",
            min=1,
            help="Sequences that a process of torchrun is handed at a time; a batch if not given.",
        ),
    ] = None,
    shard: common.ShardOption = None,
    device: common.Device = "auto",
    device_map: common.DeviceMap = None,
    fsdp: common.Fsdp = False,
    dtype: common.Dtype = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = "auto",
    max_memory: common.MaxMemory = None,
    seed: common.Seed = 0,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Fit the curvature of a model on a corpus: covariances, eigenvectors, corrected eigenvalues.

    Example: inflcli fit-factors --model gpt2 --corpus run/corpus --out run/factors
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    config = FitFactorsConfig(
        curvature=common.choice("curvature", curvature, CURVATURES),
        modules=modules,
        blocks=blocks,
        labels=common.choice("labels", labels, LABELS),
        label_samples=label_samples,
        max_sequences=max_sequences,
        dtype=common.choice("dtype", dtype, DTYPES),
        precision=common.choice("precision", precision, PRECISIONS),
        seed=common.checked_seed(seed),
        splits=splits,
        shard=common.shard(shard),
    )
    runtime = common.runtime(
        device=device,
        batch_size=batch_size,
        overwrite=overwrite,
        max_memory=max_memory,
        chunk_size=chunk_size,
        device_map=device_map,
        fsdp=fsdp,
    )
    from inflcli.stages.fit_factors import fit_factors
    from inflcli.stages.fit_shards import fit_shard

    fit = fit_factors if config.shard is None else fit_shard
    common.finish(fit(model, corpus, out, config, runtime), as_json)
