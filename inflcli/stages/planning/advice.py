"""What does not fit, and which option mends it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inflcli.stages.planning.estimates import Estimate, fit_parts, sums_bytes
from inflcli.stages.planning.rates import Rates
from inflcli.stages.planning.routes import Routed
from inflcli.stages.planning.task import Task

_DAY = 86_400.0
_SHARDED = ("fit-factors", "scan", "attribute")
_MOST_BLOCKS = 64


def advise(
    task: Task, rates: Rates, routed: Routed, found: Sequence[Estimate], free: float
) -> list[str]:
    """Warnings, each with what mends it."""
    return [
        *_fit(task),
        *_queries(task, routed),
        *_memory(task, rates, found),
        *_disk(found, free),
        *_time(task, found),
    ]


def _fit(task: Task) -> list[str]:
    warnings = []
    parts = fit_parts(task)
    for phase in ("covariance", "corrected"):
        passes = sum(1 for name, _ in parts if name == phase)
        if passes < 2:
            continue
        whole = sums_bytes(task, phase, task.outline.modules, task.config.fit.blocks)
        warnings.append(
            f"fit-factors: {phase} holds {gib(whole)}, more than the {gib(task.memory)} planned "
            f"with, so it takes {passes} passes over the sequences; {_fewer_passes(task, phase)}"
        )
    return warnings


def _fewer_passes(task: Task, phase: str) -> str:
    modules, mends = task.outline.modules, []
    whole = sums_bytes(task, phase, modules, task.config.fit.blocks)
    if task.available is None or whole < task.available:
        mends.append(f"--max-memory {math.ceil(whole / 2**30 * 10) / 10:g} makes it one")
    blocks = 2 * task.config.fit.blocks
    while blocks <= _MOST_BLOCKS and sums_bytes(task, phase, modules, blocks) > task.memory:
        blocks *= 2
    if blocks <= _MOST_BLOCKS:
        mends.append(f"--blocks {blocks} makes it one by an approximation")
    return " or ".join(mends) or "fewer --modules take fewer"


def _queries(task: Task, routed: Routed) -> list[str]:
    if routed.loaded <= task.memory:
        return []
    numbers = sum(shape.outputs + shape.inputs for shape in routed.shapes.values())
    rank = int(task.memory / (task.queries * numbers * task.product))
    fitting = max(1, int(task.queries * task.memory / routed.loaded))
    sets = f"give precondition and scan {fitting} queries at a time"
    mend = f"--rank {rank} fits, or a lower --keep; or {sets}" if rank else sets
    return [
        f"scan: the queries take {gib(routed.loaded)}, more than the {gib(task.memory)} planned "
        f"with; {mend}"
    ]


def _memory(task: Task, rates: Rates, found: Sequence[Estimate]) -> list[str]:
    if task.available is None:
        return []
    warnings = []
    # A calibration has the model loaded by the time that it looks.
    free = task.available + (rates.base if rates.sampled else 0.0)
    for one in found:
        # What runs no model takes hardly more than the programme.
        if one.flops is not None and one.memory is not None and one.memory > free:
            mend = {
                "fit-factors": "a smaller --max-memory makes more passes, --blocks smaller sums",
                "precondition": "--blocks makes smaller factors, --max-memory smaller chunks",
            }.get(one.stage, "a smaller --batch-size, or a lower --rank, --keep or --max-rank")
            warnings.append(
                f"{one.stage}: needs {gib(one.memory)}, and {gib(free)} are free; {mend}"
            )
    return warnings


def _disk(found: Sequence[Estimate], free: float) -> list[str]:
    needed = sum(one.disk or 0.0 for one in found)
    if needed <= free:
        return []
    most = max(found, key=lambda one: one.disk or 0.0)
    mend = {
        "fit-factors": "--blocks makes smaller factors",
        "precondition": "a lower --rank, --keep or --max-rank makes smaller queries",
        "scan": "scan without --token-scores, or scan --candidates of tfidf-filter",
    }.get(most.stage, "choose another disk with --run")
    return [
        f"disk: the artifacts take {gib(needed)}, and {gib(free)} are free; most is for "
        f"{most.stage}: {mend}"
    ]


def _time(task: Task, found: Sequence[Estimate]) -> list[str]:
    warnings = []
    for one in found:
        days = (one.seconds or 0.0) / _DAY
        if days <= 1:
            continue
        shards = task.config.shards * math.ceil(days)
        mend = f"a day on each of {shards} machines with --shard I/{shards}"
        if one.stage == "scan":
            mend += ", or scan only the --candidates of tfidf-filter"
        elif one.stage in ("prepare", "tfidf-filter"):
            mend = "it can be stopped, and goes on where it was"
        elif one.stage not in _SHARDED:
            mend = f"divide the query file in {math.ceil(days)}"
        warnings.append(f"{one.stage}: takes {days:,.1f} days; {mend}")
    return warnings


def gib(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
