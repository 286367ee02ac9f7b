"""`inflcli validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inflcli.cli import common
from inflcli.cli.precondition import damped
from inflcli.config import DTYPES, ESTIMATORS, GROUND_TRUTHS, ValidateConfig
from inflcli.errors import BadInput

NAME = "validate"
PANEL = common.INSPECT


def command(
    model: common.Model,
    corpus: common.Corpus,
    factors: Annotated[Path, typer.Option("--factors", help="Factors made by fit-factors.")],
    queries: common.QueryFile,
    out: common.Out,
    truth: Annotated[
        str,
        typer.Option(
            "--ground-truth",
            help="Some of ggn (exact damped solve), pbrf (proximal Bregman response), lds "
            "(retraining on random halves) and topk (retraining without the top).",
        ),
    ] = "ggn",
    estimators: Annotated[
        str,
        typer.Option("--estimators", help=f"all, or some of {', '.join(ESTIMATORS)}."),
    ] = "all",
    points: Annotated[
        str,
        typer.Option("--points", help="How many training sequences are scored, a sample; or all."),
    ] = "500",
    damping_factor: common.DampingFactor = None,
    damping: common.Damping = None,
    refine: Annotated[
        int, typer.Option("--refine", min=1, help="Steps of the estimator refined.")
    ] = 10,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Steps of LiSSA; the fit's sequences if not given."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            help="Relative residual at which ggn's solve ends, and gradient norm of pbrf's minima.",
        ),
    ] = 1e-6,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="Weight of a query or point in pbrf; chosen if not given."),
    ] = None,
    subsets: Annotated[
        int, typer.Option("--subsets", min=3, help="Random halves that lds retrains on.")
    ] = 50,
    removals: Annotated[
        str, typer.Option("--removals", help="How many of the top sequences topk leaves out.")
    ] = "5,20",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of a retraining.")] = 10,
    train_batch: Annotated[
        int, typer.Option("--train-batch", min=1, help="Sequences a batch of a retraining.")
    ] = 16,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="The highest of a retraining (AdamW, cosine).")
    ] = 1e-3,
    initial: Annotated[
        str | None,
        typer.Option(
            "--initial", help="A model that retraining begins with; fresh weights if not given."
        ),
    ] = None,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "float64",
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Measure how right influence scores are for a small model, against ground truths.

    Example: inflcli validate --model m --corpus run/corpus --factors run/factors --queries q.jsonl
    --out run/validation --ground-truth ggn,pbrf
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    damping_settings = damped(damping_factor, damping)
    if 0 in damping_settings.values():
        raise BadInput("validate needs a damping above 0")
    config = ValidateConfig(
        truths=_some("ground-truth", truth, GROUND_TRUTHS),
        estimators=ESTIMATORS
        if estimators == "all"
        else _some("estimators", estimators, ESTIMATORS),
        points=None if points == "all" else _count("points", points),
        **damping_settings,
        dtype=common.choice("dtype", dtype, DTYPES),
        seed=common.checked_seed(seed),
        refine=refine,
        depth=depth,
        tolerance=tolerance,
        epsilon=epsilon,
        subsets=subsets,
        removals=tuple(_count("removals", one) for one in removals.split(",")),
        epochs=epochs,
        batch_size=train_batch,
        learning_rate=learning_rate,
        initial=initial,
    )
    runtime = common.runtime(device=device, overwrite=overwrite)
    from inflcli import console
    from inflcli.stages.validate import validate

    result = validate(model, corpus, factors, queries, out, config, runtime)
    if not as_json:
        from inflcli.report.validation import render

        console.stdout.print(render(result["validation"]))
    common.finish(result, as_json)


def _some(option: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a comma-separated list, in the order of `allowed`."""
    wanted = {common.choice(option, word.strip(), allowed) for word in text.split(",")}
    return tuple(word for word in allowed if word in wanted)


def _count(option: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) == 0:
        raise BadInput(f"--{option} {text} is not a positive number")
    return int(text)
