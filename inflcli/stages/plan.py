"""`plan`: what a run will cost, and what of it does not fit, before it starts."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inflcli import console
from inflcli.artifacts.files import write_errors
from inflcli.config import PlanConfig, Runtime, shares_inputs
from inflcli.errors import InflcliError, OutOfResources
from inflcli.model.load import LoadedModel, dtype_name, identify, load_model, pick_device
from inflcli.model.resolve import load_tokenizer, resolve_folder
from inflcli.stages.inverses import require_halves
from inflcli.stages.planning import cheap, estimates, estimates_queries
from inflcli.stages.planning.advice import advise
from inflcli.stages.planning.estimates import Estimate
from inflcli.stages.planning.measure import held
from inflcli.stages.planning.outline import read_outline
from inflcli.stages.planning.rates import Rates, guess
from inflcli.stages.planning.routes import Routed, plan_routes
from inflcli.stages.planning.task import Task, available, make_task, read_text
from inflcli.stages.planning.timing import Timed
from inflcli.stages.planning.timing_fit import time_fit
from inflcli.stages.planning.timing_queries import time_queries
from inflcli.stages.planning.timing_scan import time_scan
from inflcli.stages.planning.timing_text import time_text


def plan(
    model: str,
    corpus: Path | None,
    queries: Path | None,
    run: Path,
    config: PlanConfig,
    runtime: Runtime,
    begun: float | None = None,
) -> dict[str, Any]:
    """Predict FLOPs, seconds, memory and disk of every stage; nothing is kept.

    `run` is the folder whose disk the artifacts would fill, `begun` the time at which the process
    started, where it is one of its own. Cost: the model's config; with `calibrate` loading the
    model, a few batches of each kind of pass, and the eigenvectors of some layers. Raises BadInput,
    MissingArtifact, OutOfResources.
    """
    require_halves(config.precondition, config.fit.splits)
    started = time.time()
    folder, loaded = resolve_folder(model, weights=config.calibrate), None
    text = read_text(corpus, config)
    if config.calibrate:
        # Before anything else, so that what it takes to import is counted as a stage's start.
        loaded = _load(folder, config, runtime, begun or started)
    start, disk = time.time() - (begun or started), _existing(run)
    share = shares_inputs(config.fit.curvature)
    outline = read_outline(folder, config.fit.modules, round(text.mean), share=share)
    task = make_task(outline, folder, text, queries, config, runtime)
    rates = guess(task) if loaded is None else _measure(task, loaded, folder, start, disk)
    routed = plan_routes(task, rates.columns)
    found = [
        cheap.prepare(task, rates),
        estimates.fit(task, rates),
        estimates_queries.precondition(task, rates),
        cheap.tfidf_filter(task, rates),
        estimates_queries.scan(task, rates, routed),
        estimates_queries.attribute(task, rates, routed),
        cheap.report(task, rates),
    ]
    free = float(shutil.disk_usage(disk).free)
    return {
        **_described(task, rates, routed),
        "model": model,
        "corpus": None if corpus is None else str(corpus),
        "query_file": None if queries is None else str(queries),
        "seconds_planning": round(time.time() - (begun or started), 1),
        "stages": [_row(one) for one in found],
        "totals": _totals(found),
        "disk_free": free,
        "warnings": advise(task, rates, routed, found, free),
    }


@dataclass(frozen=True)
class _Loaded:
    model: LoadedModel
    base: float
    """Bytes that it and the programme hold."""
    light: float
    light_start: float
    """Bytes and seconds of the programme without a model."""


def _load(folder: Path, config: PlanConfig, runtime: Runtime, begun: float) -> _Loaded:
    """Load the model as a stage does. Raises OutOfResources where its files do not fit."""
    device = pick_device(runtime.device)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = available(device)
    if weights > free:
        raise OutOfResources(
            f"the model's {weights / 2**30:.1f} GiB do not fit the {free / 2**30:.1f} GiB that are "
            f"free on {device}",
            "plan with --no-calibrate",
        )
    empty = held(device) if device.type == "cuda" else 0.0
    # What the stages that need no model import.
    with suppress(InflcliError):
        load_tokenizer(folder)
    light, light_start = held(torch.device("cpu")), time.time() - begun
    identify(str(folder))
    dtype = dtype_name(config.fit.dtype, str(folder), runtime.device)
    model = load_model(str(folder), device=runtime.device, dtype=dtype)
    return _Loaded(model, held(device) - empty, light, light_start)


def _measure(task: Task, loaded: _Loaded, model: Path, start: float, disk: Path) -> Rates:
    """Time the stages' work on some of their batches, layers and queries.

    What they write goes to the disk that the artifacts will be on, and is removed.
    """
    with (
        write_errors(disk),
        tempfile.TemporaryDirectory(prefix=".inflcli-plan-", dir=disk) as scratch,
    ):
        timed = Timed(task, loaded.model, Path(scratch), held(loaded.model.device))
        # Lines, not a bar: the eigenvectors show their own.
        console.info("calibrating: a few batches of the fit")
        fitted = time_fit(timed)
        console.info("calibrating: some queries")
        bounded = time_queries(timed, fitted)
        console.info("calibrating: a few batches of scan and attribute")
        time_scan(timed)
        console.info("calibrating: some text")
        time_text(timed, model)
    usual = guess(task)
    return Rates(
        speed={**usual.speed, **timed.speed},
        working={**usual.working, **timed.working},
        base=loaded.base,
        start=start,
        light=loaded.light,
        light_start=loaded.light_start,
        text={**usual.text, **timed.text},
        candidate=timed.candidate or usual.candidate,
        read=timed.read,
        write=timed.write,
        digest=timed.digest,
        columns=timed.columns,
        bounded=bounded,
        sampled=timed.sampled,
    )


def _described(task: Task, rates: Rates, routed: Routed) -> dict[str, Any]:
    outline, text, names = task.outline, task.text, list(routed.routes.values())
    phases = [phase for phase, _ in estimates.fit_parts(task)]
    return {
        "parameters": outline.parameters,
        "tracked": {
            "modules": len(outline.modules),
            "wanted": task.config.fit.modules,
            "parameters": sum(module.parameters for module in outline.modules),
            "percent": 100 * outline.share,
        },
        "device": str(task.device),
        "dtype": task.config.fit.dtype,
        "precision": task.config.fit.precision,
        "sequences": text.count,
        "mean_tokens": text.mean,
        "fit_sequences": round(task.fit_reading().sequences),
        "queries": task.queries,
        "shards": task.config.shards,
        "memory_planned": task.memory,
        "memory_available": task.available,
        "calibrated": bool(rates.sampled),
        "fit_passes": {phase: phases.count(phase) for phase in ("covariance", "corrected")},
        "routes": {route: names.count(route) for route in sorted(set(names))},
        "route_of": dict(routed.routes),
        "columns": dict(rates.columns),
        "rates": {
            key: value for key, value in asdict(rates).items() if key not in ("columns", "sampled")
        },
        "sampled": dict(rates.sampled),
    }


def _row(one: Estimate) -> dict[str, Any]:
    return {**asdict(one), "parts": dict(one.parts), "seconds": one.seconds}


def _totals(found: list[Estimate]) -> dict[str, Any]:
    return {
        "flops": sum(one.flops or 0.0 for one in found),
        "seconds": sum(one.seconds or 0.0 for one in found),
        "memory": max(one.memory or 0.0 for one in found),
        "disk": sum(one.disk or 0.0 for one in found),
    }


def _existing(path: Path) -> Path:
    """The nearest folder above that there is."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
