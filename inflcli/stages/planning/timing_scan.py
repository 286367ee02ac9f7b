"""Timing scan and attribute: some batches against made-up queries of the ranks foreseen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from inflcli.influence.cost import ModuleShape
from inflcli.influence.dense import DenseQueries
from inflcli.influence.factored import FactoredQueries
from inflcli.model.batches import Batch
from inflcli.model.direction import effects
from inflcli.model.labels import TrueLabels
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, depth_group, group_names
from inflcli.stages.planning.estimates_queries import exact_bytes, scan_bytes
from inflcli.stages.planning.flops import attribute_flops, scan_flops
from inflcli.stages.planning.measure import measured, now
from inflcli.stages.planning.routes import Routed, plan_routes
from inflcli.stages.planning.timing import Timed
from inflcli.stages.scoring import Queries, Scorer, on_route

_CHUNKS = 4


def time_scan(timed: Timed) -> None:
    """Rates of scan and attribute."""
    routed = _fitting(timed)
    _scan(timed, routed)
    _attribute(timed, routed)


def _fitting(timed: Timed) -> Routed:
    """The queries and their routes; of fewer queries, where not all fit into memory."""
    task = timed.task
    routed = plan_routes(task, timed.columns)
    share = task.memory / max(routed.loaded, routed.held)
    if share >= 1:
        return routed
    fewer = replace(task, queries=max(1, int(task.queries * share)))
    return replace(plan_routes(fewer, timed.columns), routes=routed.routes)


def _scan(timed: Timed, routed: Routed) -> None:
    model, modules = timed.model, routed.modules
    task = replace(timed.task, queries=routed.work.queries)
    passes = Passes.for_model(model, modules, task.config.scan.precision)
    size = task.config.scan.chunk_size
    chunks = range(0, len(task.text.lengths), size)
    some = [chunks[n] for n in sorted({*np.linspace(0, len(chunks) - 1, _CHUNKS).astype(int)})]
    plans = [
        plan
        for first in some
        for plan in timed.plans(np.arange(first, min(first + size, len(task.text.lengths))))
    ]
    with measured(model.device) as found:
        loaded = {
            n: _made_up(shape, task.queries, timed, task.product_dtype)
            for n, shape in routed.shapes.items()
        }
        queries: Mapping[str, Queries] = {
            name: on_route(loaded.pop(name), route) for name, route in routed.routes.items()
        }
        groups = {module.name: depth_group(module, modules) for module in modules}
        width = task.text.width if task.config.scan.token_scores else None
        scorer = Scorer(
            queries,
            groups,
            (task.queries, len(group_names(modules))),
            width,
            routed.work.waiting,
            model.statistics_dtype,
            model.device,
        )
        scorer.begin(size)

        ran = 0

        def run(batch: Batch) -> None:
            nonlocal ran
            ran += len(batch.ids)
            scorer.place(torch.arange(len(batch.ids)))
            passes.run(batch, [TrueLabels()], scorer.consume)

        seconds, reading = timed.passes("scan", plans, run)
        # What waits is scored with the first batch, which the seconds leave out.
        begun = now(model.device)
        scorer.end()
        seconds += (now(model.device) - begun) * reading.sequences / ran
    # The queries are made dense for as many sequences as came together.
    waiting = routed.work.waiting
    if waiting:
        waiting = max(1, round(ran / math.ceil(ran / waiting)))
    sample = replace(routed, work=replace(routed.work, waiting=waiting))
    timed.speed["scan"] = scan_flops(task, sample, reading) / seconds
    timed.working["scan"] = max(0.0, found.growth - scan_bytes(task, routed))


def _attribute(timed: Timed, routed: Routed) -> None:
    model, element = timed.model, timed.model.statistics_dtype
    task = replace(timed.task, queries=routed.work.queries)
    passes = Passes.for_model(model, routed.modules)
    count = min(2 * task.config.attribute.top_k, len(task.text.lengths))
    spread = np.linspace(0, len(task.text.lengths) - 1, count).astype(np.int64)
    with measured(model.device) as found:
        one = {
            name: _made_up(_of_one(shape, task.queries), 1, timed, element)
            for name, shape in routed.shapes.items()
        }

        def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            one[module.name].token_scores(a.to(element), g.to(element))[..., 0].float().cpu()

        def push(module: TrackedModule, a: Tensor) -> Tensor:
            return one[module.name].outputs(a.to(element)).to(a.dtype)

        def run(batch: Batch) -> None:
            passes.run(batch, [TrueLabels()], consume)
            if task.config.attribute.counterfactual:
                effects(passes, batch, push)

        seconds, reading = timed.passes("attribute", timed.plans(np.unique(spread)), run)
    timed.speed["attribute"] = attribute_flops(task, routed, reading) / seconds
    timed.working["attribute"] = max(0.0, found.growth - exact_bytes(task, routed) / task.queries)


def _of_one(shape: ModuleShape, queries: int) -> ModuleShape:
    return replace(shape, columns=shape.columns and max(1, shape.columns // queries))


def _made_up(
    shape: ModuleShape, count: int, timed: Timed, dtype: torch.dtype
) -> DenseQueries | FactoredQueries:
    """Random queries of that shape; each has as many of the columns as the next."""
    device = timed.model.device

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=device)

    if shape.columns is None:
        return DenseQueries(random(1, shape.outputs, shape.inputs).repeat(count, 1, 1))
    left = random(shape.outputs, 1).repeat(1, shape.columns)
    right = random(shape.inputs, 1).repeat(1, shape.columns)
    owner = torch.arange(shape.columns, device=device) * count // shape.columns
    return FactoredQueries(left, right, owner, count)
