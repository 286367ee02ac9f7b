"""The cost of refining queries: of a solve's products with the Gauss-Newton Hessian."""

from __future__ import annotations

import numpy as np

from inflcli.model.tracked import TrackedModule
from inflcli.stages.planning.outline import Outline
from inflcli.stages.planning.task import Reading, Task
from inflcli.stages.refine import VECTORS, Sizes, attention_bytes, fit_into

_POWER_STEPS = 20
"""Products with one vector, by which neumann finds its step."""


def product_flops(
    outline: Outline, modules: list[TrackedModule], reading: Reading, queries: int
) -> float:
    """Of a product with one vector of so many `queries`, which share two forward passes: how values
    move, a backward pass, and V a and gᵀ a of every module.

    The head's part is counted where it is predicted: there once, and back and how it moves.
    """
    head = 2.0 * outline.width * outline.vocabulary
    parameters = sum(module.parameters for module in modules)
    shared = 2 * reading.positions * (outline.forward - head) + reading.predicted * head
    moved_and_back = outline.pass_flops(modules, 1) - 2 * head + 4 * parameters
    return shared / queries + reading.positions * moved_and_back + reading.predicted * 2 * head


def refine_flops(task: Task, modules: list[TrackedModule]) -> float:
    """Of refining all queries by as many steps as it may take: a product a step and query, and one
    for the residual, with a preconditioning each."""
    config, reading = task.config.precondition, refine_reading(task)
    products = (config.refine + 1) * task.queries
    if config.refine_solver == "neumann":
        products += _POWER_STEPS
    turned = sum(4.0 * m.parameters * (m.inputs + m.outputs) for m in modules)
    together = refine_sizes(task).queries
    return products * (product_flops(task.outline, modules, reading, together) + turned)


def refine_reading(task: Task) -> Reading:
    """What a product with one vector reads."""
    lengths, count = task.text.lengths, task.text.count
    wanted = min(task.config.precondition.refine_sequences or count, count)
    ids = np.arange(len(lengths))
    if wanted < len(ids):
        ids = np.random.default_rng(0).choice(ids, wanted, replace=False)
    sizes = refine_sizes(task)
    batch = max(1, sizes.tokens // (sizes.queries * task.text.width))
    found, scale = task.text.reading(ids, batch), wanted / len(ids)
    return Reading(found.sequences * scale, found.positions * scale, found.predicted * scale)


def refine_sizes(task: Task) -> Sizes:
    """How many queries are solved together, and how large their batches are."""
    modules, width = task.outline.modules, task.text.width
    if task.batch_size is not None:
        return Sizes(task.batch_size, task.batch_size * width)
    sizes = fit_into(task.memory, modules, width, task.element, token_bytes(task))
    return Sizes(min(sizes.queries, task.queries), sizes.tokens)


def token_bytes(task: Task) -> float:
    """Of a token, that the passes of a product hold."""
    size, outline = task.dtype.itemsize, task.outline
    return outline.held * size / 4 + attention_bytes(outline.heads, task.text.width, size)


def refine_bytes(task: Task) -> float:
    """Of a chunk of queries while they are solved for: vectors and activations."""
    sizes = refine_sizes(task)
    parameters = sum(module.parameters for module in task.outline.modules)
    return VECTORS * task.element * parameters * sizes.queries + sizes.tokens * token_bytes(task)
