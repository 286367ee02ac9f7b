"""Timing precondition: some queries, in the layers whose factors there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from inflcli.ekfac import gauss_newton_sum
from inflcli.model.batches import Batch, plan_batches
from inflcli.model.labels import TrueLabels
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule
from inflcli.stages.compression import Held, compress
from inflcli.stages.inverses import read_inverses
from inflcli.stages.planning.estimates_queries import chunk_bytes
from inflcli.stages.planning.flops import query_flops
from inflcli.stages.planning.measure import measured, now
from inflcli.stages.planning.rates import most_columns
from inflcli.stages.planning.refining import product_flops, refine_sizes
from inflcli.stages.planning.timing import Timed
from inflcli.stages.planning.timing_fit import FittedLayers
from inflcli.stages.precondition import query_batch

_QUERIES = 8


def time_queries(timed: Timed, fitted: FittedLayers) -> bool:
    """The rate of precondition, and what it keeps; whether that is only what it keeps at most."""
    task, model = timed.task, timed.model
    config = task.config.precondition
    at_most = {m.name: float(most_columns(m, task)) for m in task.outline.modules}
    modules = fitted.modules
    if config.curvature == "identity":
        modules = task.outline.modules
    if not modules:
        timed.columns = at_most
        return config.keep is not None
    begun = now(model.device)
    inverses = read_inverses(timed.folder, fitted.mean_tokens, modules, config, model)
    if config.curvature != "identity":
        size = sum(path.stat().st_size for path in timed.folder.rglob("*.safetensors"))
        timed.read = size / (now(model.device) - begun)
    count = min(_QUERIES, len(task.encoded))
    some = [task.encoded[n] for n in np.linspace(0, len(task.encoded) - 1, count).astype(int)]
    passes = Passes.for_model(model, modules, config.precision)
    ranks: dict[str, list[int]] = {}

    def precondition(of: int) -> None:
        batch = query_batch(some[:of], model.device)
        length = max(batch.extents)
        held: list[Held] = []

        def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            a, g = (rows[:, :length].to(model.statistics_dtype) for rows in (a, g))
            held.append((module, inverses[module.name].gradients(a, g)))

        passes.run(batch, [TrueLabels()], consume)
        for name, one in compress(held, config):
            ranks[name] = one.ranks

    precondition(1)
    with measured(model.device) as found:
        precondition(count)
    tokens = [len(query.tokens) for query in some]
    timed.speed["queries"] = query_flops(task, modules, tokens) / found.seconds
    columns = {name: float(np.mean(kept)) for name, kept in ranks.items()}
    sampled = replace(task, queries=count, outline=replace(task.outline, modules=modules))
    timed.working["queries"] = max(0.0, found.growth - chunk_bytes(sampled, columns))
    timed.sampled["queries"] = count
    if config.refine:
        _time_products(timed, passes)
    for module in task.outline.modules:
        alike = [one for one in modules if _place(one) == _place(module)] or modules
        nearest = min(alike, key=lambda one, layer=module.layer: abs(one.layer - layer))  # type: ignore[misc]
        timed.columns[module.name] = min(columns[nearest.name], at_most[module.name])
    return False


def _time_products(timed: Timed, passes: Passes) -> None:
    """The rate of products with the Gauss-Newton Hessian of these modules."""
    task, model, modules = timed.task, timed.model, list(passes.modules)
    sizes = refine_sizes(task)
    vectors = {
        module.name: torch.ones(
            (sizes.queries, module.outputs, module.inputs),
            dtype=model.statistics_dtype,
            device=model.device,
        )
        for module in modules
    }
    ids, lengths = task.fit_ids, task.text.lengths
    plans = plan_batches(ids, lengths[ids], None, max(1, sizes.tokens // sizes.queries))

    def multiply(batch: Batch) -> None:
        gauss_newton_sum(passes, batch, vectors)

    seconds, reading = timed.passes("refine", plans, multiply)
    each = product_flops(task.outline, modules, reading, sizes.queries)
    work = sizes.queries * each
    timed.speed["refine"] = work / seconds


def _place(module: TrackedModule) -> str:
    """The module's name within its layer."""
    return module.name.replace(f".{module.layer}.", ".", 1)
