"""`inflcli precondition`."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from inflcli.cli import common
from inflcli.config import (
    AUTO,
    CURVATURES,
    DEFAULT_KEEP,
    DEFAULT_MAX_RANK,
    DEFAULT_RANK,
    DTYPES,
    FULL_RANK,
    PRECISIONS,
    REFINE_SOLVERS,
    PreconditionConfig,
)
from inflcli.errors import BadInput

NAME = "precondition"
PANEL = common.PIPELINE
Refine = Annotated[
    int | None,
    typer.Option(
        "--refine",
        min=0,
        help="Steps of a solve with the exact curvature of all modules together, from EK-FAC's "
        "answer; each costs about one and a half passes a query over its sequences.",
        show_default=str(PreconditionConfig.refine),
    ),
]
RefineSolver = Annotated[
    str | None,
    typer.Option(
        "--refine-solver",
        help="With --refine: cg (conjugate gradients, the same sequences in each step), or neumann "
        "(stochastic Neumann iterations, fresh ones in each).",
        show_default=PreconditionConfig.refine_solver,
    ),
]
RefineSequences = Annotated[
    str | None,
    typer.Option(
        "--refine-sequences",
        help="With --refine, how many sequences the curvature is taken over; all, or 0, takes all.",
        show_default=str(PreconditionConfig.refine_sequences),
    ),
]


def command(
    model: common.Model,
    factors: Annotated[Path, typer.Option("--factors", help="Factors made by fit-factors.")],
    queries: common.QueryFile,
    out: common.Out,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            help="One rank for a query's matrix in every module, or full.",
            show_default=str(DEFAULT_RANK) if DEFAULT_RANK else False,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            help="Instead of a rank, the share of a query's energy (squared norm) to keep: ranks "
            "differ by module, high where that takes least space.",
            show_default=str(DEFAULT_KEEP) if DEFAULT_KEEP else False,
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(
            "--max-rank",
            min=1,
            help="With --keep, the highest rank in a module.",
            show_default=str(DEFAULT_MAX_RANK),
        ),
    ] = None,
    damping_factor: common.DampingFactor = None,
    damping: common.Damping = None,
    curvature: Annotated[
        str,
        typer.Option(
            "--curvature",
            help="ekfac, ec-shampoo, kfac or identity. ekfac factors serve ekfac, kfac and "
            "identity, those of ec-shampoo itself and identity. auto takes what the "
            "factors were fitted for.",
        ),
    ] = "auto",
    bos: Annotated[
        bool, typer.Option("--bos", help="Put the tokenizer's bos token before each prompt.")
    ] = False,
    refine: Refine = None,
    refine_solver: RefineSolver = None,
    refine_corpus: Annotated[
        Path | None,
        typer.Option(
            "--refine-corpus",
            help="With --refine, a corpus made by prepare, whose sequences the curvature is taken "
            "over.",
            show_default=False,
        ),
    ] = None,
    refine_sequences: RefineSequences = None,
    refine_tolerance: Annotated[
        float | None,
        typer.Option(
            "--refine-tolerance",
            help="With --refine, the residual, relative to the gradient, at which it stops.",
            show_default=str(PreconditionConfig.refine_tolerance),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="With --refine, of the choice of sequences.",
            show_default=str(PreconditionConfig.seed),
        ),
    ] = None,
    device: common.Device = "auto",
    device_map: common.DeviceMap = None,
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
    """Apply the damped inverse curvature to the gradient of each query.

    Example: inflcli precondition --model gpt2 --factors run/factors --queries q.jsonl
    --out run/queries
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    config = PreconditionConfig(
        curvature=common.choice("curvature", curvature, ("auto", *CURVATURES)),
        **compression(rank, keep, max_rank),
        **damped(damping_factor, damping),
        bos=bos,
        **refinement(refine, refine_solver, refine_sequences),
        **refined_alone(refine, refine_corpus, refine_tolerance, seed),
        dtype=common.choice("dtype", dtype, DTYPES),
        precision=common.choice("precision", precision, PRECISIONS),
    )
    runtime = common.runtime(
        device=device,
        batch_size=batch_size,
        overwrite=overwrite,
        max_memory=max_memory,
        device_map=device_map,
    )
    from inflcli.stages.precondition import precondition

    common.finish(
        precondition(model, factors, queries, out, config, runtime, refine_corpus), as_json
    )


def compression(rank: str | None, keep: float | None, max_rank: int | None) -> dict[str, Any]:
    """The settings `rank`, `keep` and `max_rank`. Raises BadInput."""
    if rank is not None and keep is not None:
        raise BadInput("--rank and --keep exclude each other")
    if keep is not None and not 0 < keep < 1:
        hint = f"--rank {FULL_RANK} keeps everything"
        raise BadInput(f"--keep {keep} is not a share between 0 and 1", hint)
    if rank is None and keep is None:
        uniform, keep = DEFAULT_RANK, DEFAULT_KEEP
    else:
        uniform = None if rank is None else _rank(rank)
    if max_rank is not None and keep is None:
        raise BadInput("--max-rank goes with --keep", "--rank sets one rank for all modules")
    return {"rank": uniform, "keep": keep, "max_rank": max_rank or DEFAULT_MAX_RANK}


def damped(damping_factor: float | None, damping: str | None) -> dict[str, Any]:
    """The settings `damping_factor` and `damping`. Raises BadInput."""
    if damping is not None and damping_factor is not None:
        raise BadInput("--damping and --damping-factor exclude each other")
    if damping is not None:
        absolute = AUTO if damping == AUTO else _damping(damping)
        return {"damping_factor": None, "damping": absolute}
    factor = 0.1 if damping_factor is None else damping_factor
    if not 0 <= factor < math.inf:
        raise BadInput(f"--damping-factor {factor} is not a number from 0 on")
    return {"damping_factor": factor, "damping": None}


def _damping(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise BadInput(f"--damping {text} is neither {AUTO} nor a number from 0 on")


def refinement(refine: int | None, solver: str | None, sequences: str | None) -> dict[str, Any]:
    """The settings of a refinement that decide its cost. Raises BadInput."""
    _require_refine(refine, solver=solver, sequences=sequences)
    found: dict[str, Any] = {"refine": refine or 0}
    if solver is not None:
        found["refine_solver"] = common.choice("refine-solver", solver, REFINE_SOLVERS)
    if sequences is not None:
        if sequences != "all" and not sequences.isdigit():
            raise BadInput(f"--refine-sequences {sequences} is neither all nor a number")
        found["refine_sequences"] = None if sequences == "all" else int(sequences) or None
    return found


def refined_alone(
    refine: int | None, corpus: Path | None, tolerance: float | None, seed: int | None
) -> dict[str, Any]:
    """Its other settings. Raises BadInput."""
    _require_refine(refine, corpus=corpus, tolerance=tolerance)
    if seed is not None and refine is None:
        raise BadInput("--seed goes with --refine")
    found: dict[str, Any] = {}
    if tolerance is not None:
        if not 0 <= tolerance < 1:
            raise BadInput(f"--refine-tolerance {tolerance} is not from 0 to below 1")
        found["refine_tolerance"] = tolerance
    if seed is not None:
        found["seed"] = common.checked_seed(seed)
    return found


def _require_refine(refine: int | None, **given: object) -> None:
    for name, value in given.items():
        if value is not None and refine is None:
            raise BadInput(f"--refine-{name} goes with --refine")


def _rank(text: str) -> int | None:
    if text == FULL_RANK:
        return None
    if not text.isdigit() or int(text) == 0:
        raise BadInput(f"--rank {text} is neither {FULL_RANK} nor a positive number")
    return int(text)
