"""The routes that a scan will take, and what its queries hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from inflcli.influence.cost import ModuleShape, Work, choose_routes, waiting_bytes
from inflcli.model.batches import plan_batches
from inflcli.model.tracked import TrackedModule, select_layers
from inflcli.shapes import round_up
from inflcli.stages.planning.task import Task
from inflcli.stages.scoring import scan_work


@dataclass(frozen=True)
class Routed:
    """All queries, by the route of each module."""

    modules: list[TrackedModule]
    shapes: Mapping[str, ModuleShape]
    routes: Mapping[str, str]
    work: Work
    loaded: float
    """Bytes of the queries as they are read from disk."""
    held: float
    """Bytes of them as the routes want them, and of the gradients that wait for them."""


def plan_routes(task: Task, columns: Mapping[str, float]) -> Routed:
    """Choose as the scan does, with `columns` components a query in each module."""
    modules = select_layers(task.outline.modules, task.config.scan.layers)
    whole = task.config.precondition.rank is None and task.config.precondition.keep is None
    shapes = {
        m.name: ModuleShape(
            m.outputs, m.inputs, None if whole else max(1, round(columns[m.name] * task.queries))
        )
        for m in modules
    }
    lengths = task.text.lengths
    work = scan_work(
        lengths,
        len(plan_batches(np.arange(len(lengths)), lengths, task.batch_size)),
        chunk=min(task.config.scan.chunk_size, task.text.count),
        queries=task.queries,
        device=task.device,
        precision=task.config.scan.precision,
        element=task.product,
        token_scores=task.config.scan.token_scores,
    )
    routes = choose_routes(shapes, work, memory=task.memory, forced=task.config.scan.route)
    loaded = {name: _loaded(shape, task) for name, shape in shapes.items()}
    held = {
        name: loaded[name] + waiting_bytes(shapes[name], work)
        if route == "dense"
        else _padded(shapes[name], task)
        for name, route in routes.items()
    }
    return Routed(
        modules, shapes, routes, work, float(sum(loaded.values())), float(sum(held.values()))
    )


def _padded(shape: ModuleShape, task: Task) -> int:
    columns = shape.columns and round_up(shape.columns)
    return _loaded(replace(shape, columns=columns), task)


def _loaded(shape: ModuleShape, task: Task) -> int:
    if shape.columns is None:
        return task.product * task.queries * shape.outputs * shape.inputs
    return task.product * shape.columns * (shape.outputs + shape.inputs)
