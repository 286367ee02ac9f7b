"""FLOPs of the stages' work, by kind: for any modules, and any part of the sequences."""

from __future__ import annotations

from collections.abc import Sequence

from inflcli.config import shares_inputs
from inflcli.ekfac.cost import (
    corrected_macs,
    covariance_macs,
    decomposition_macs,
    query_macs,
    sequence_covariance_macs,
)
from inflcli.influence.cost import route_macs
from inflcli.model.tracked import TrackedModule
from inflcli.stages.eigenvectors import covariances
from inflcli.stages.planning.rates import most_columns
from inflcli.stages.planning.routes import Routed
from inflcli.stages.planning.task import Reading, Task

_COUNTERFACTUAL = 4.7
"""Passes that the counterfactual attributions take besides, by time, on the demo's model; 5.9 by
differences."""


def covariance_flops(task: Task, modules: list[TrackedModule], reading: Reading) -> float:
    """Of the first pass of a fit: the model's, and the sums A, once, and S, for each label; of
    ec-shampoo both for each label."""
    config, labels = task.config.fit, _labels(task)
    passes = task.outline.pass_flops(modules, labels) * reading.positions
    if not shares_inputs(config.curvature):
        tokens = reading.predicted / max(reading.sequences, 1)
        sequence = sum(
            sequence_covariance_macs(tokens, one.outputs, one.inputs, config.blocks)
            for one in modules
        )
        return passes + 2 * labels * reading.sequences * sequence
    a_row = sum(
        covariance_macs(module.inputs, config.blocks)
        for module in modules
        if module.name == module.shares_input_with
    )
    s_row = sum(covariance_macs(module.outputs, config.blocks) for module in modules)
    return passes + 2 * reading.predicted * (a_row + labels * s_row)


def corrected_flops(task: Task, modules: list[TrackedModule], reading: Reading) -> float:
    """Of the second pass of a fit: the model's, and Λ."""
    blocks, labels = task.config.fit.blocks, _labels(task)
    sequence = sum(
        corrected_macs(reading.tokens, module.outputs, module.inputs, blocks) for module in modules
    )
    passes = task.outline.pass_flops(modules, labels) * reading.positions
    return passes + 2 * labels * reading.sequences * sequence


def eigenvector_flops(task: Task, modules: Sequence[TrackedModule]) -> float:
    """Of decomposing all covariances of `modules`."""
    blocks = task.config.fit.blocks
    return sum(2 * decomposition_macs(one.size, blocks) for one in covariances(modules))


def query_flops(task: Task, modules: list[TrackedModule], tokens: Sequence[int]) -> float:
    """Of preconditioning and compressing queries of so many tokens."""
    config, blocks = task.config.precondition, task.config.fit.blocks
    whole = config.rank is None and config.keep is None
    longest = max(tokens)  # all are padded to it
    each = 0.0
    for module in modules:
        rank = None if whole else most_columns(module, task)
        dtype = task.product_dtype
        each += query_macs(longest, module.outputs, module.inputs, rank, blocks, dtype)
    return len(tokens) * (task.outline.pass_flops(modules, 1) * longest + 2 * each)


def scan_flops(task: Task, routed: Routed, reading: Reading) -> float:
    """Of a scan: the model's passes and the scores."""
    scores = sum(
        route_macs(routed.routes[name], shape, routed.work) for name, shape in routed.shapes.items()
    )
    passes = task.outline.pass_flops(routed.modules, 1)
    return reading.positions * (passes + 2 * scores)


def attribute_flops(task: Task, routed: Routed, reading: Reading) -> float:
    """Of attributing the sequences of `reading` to one query each."""
    scores = 0.0
    for shape in routed.shapes.values():
        size = shape.outputs + shape.inputs
        if shape.columns is None:
            scores += shape.outputs * shape.inputs
        else:
            scores += shape.columns / task.queries * size
    passes = 1.0 + (_COUNTERFACTUAL if task.config.attribute.counterfactual else 0.0)
    return reading.positions * (passes * task.outline.pass_flops(routed.modules, 1) + 2 * scores)


def _labels(task: Task) -> int:
    config = task.config.fit
    return config.label_samples if config.labels == "sampled" else 1
