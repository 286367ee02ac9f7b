"""Predicted cost of the scoring routes, and the choice between them.

Costs are in MACs a token: those of the matrix products, and what moves through memory beside them
at `balance` MACs a byte, which says how many multiply-adds the device does in the time of one byte.
The shapes of a batch are given, so the same choice comes out on every run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from inflcli.influence.scoring import gradients_formed, scored_together

BALANCE = {
    ("cpu", "exact"): 12.0,
    ("cpu", "fast"): 40.0,
    ("cuda", "exact"): 20.0,
    ("cuda", "fast"): 100.0,
}
"""MACs a byte, measured on CPUs with AMX; the rows for GPUs are from their data sheets."""
_FLOAT = 4
"""Bytes of a number between two products, which are float32."""
_FRESH = 5
"""Memory written for the first time is that much slower, measured: its pages are cleared."""
_CACHE = 16 << 20
"""Bytes up to which what is written stays in the cache, and is not of new pages."""


@dataclass(frozen=True)
class ModuleShape:
    """P, M, and the columns K that all queries' factors have together (None: stored dense)."""

    outputs: int
    inputs: int
    columns: int | None


@dataclass(frozen=True)
class Work:
    """What a batch is scored against, and on what."""

    queries: int
    sequences: float
    """Sequences a batch."""
    tokens: float
    """Tokens a sequence."""
    element: int
    """Bytes of a number of a query, of DW, and of g L and a R."""
    balance: float
    scanned: float = math.inf
    """Tokens of the whole scan, over which what is done once is spread."""
    token_scores: bool = False


def dense_cost(shape: ModuleShape, work: Work) -> float:
    """Of the dense route: M P to form DW, Q M P / T to score it, and reading queries and DW.

    With token scores Q M P instead. Once, K M P to multiply factors out, and writing them.
    """
    weights = shape.outputs * shape.inputs
    once = (shape.columns or 0) * weights + _FRESH * work.balance * dense_bytes(shape, work)
    spread = once / work.scanned if shape.columns is not None else 0.0
    if work.token_scores:
        return work.queries * (weights + _FLOAT * work.balance * 2 * shape.inputs) + spread
    # DW is written and read; the queries are read once for all the DW that is scored together.
    formed = min(work.sequences, gradients_formed(shape.outputs, shape.inputs))
    written = 1 if formed * weights * work.element <= _CACHE else _FRESH
    moved = (written + 1) * work.element * weights / work.tokens
    moved += _rounded(work) * (shape.outputs + shape.inputs)
    together = scored_together(work.sequences, work.queries, shape.outputs, shape.inputs)
    read = work.queries * weights * work.element / (together * work.tokens)
    scored = max(work.queries * weights / work.tokens, work.balance * read)
    return weights + scored + work.balance * moved + spread


def factored_cost(shape: ModuleShape, work: Work) -> float:
    """Of the factored route: K (M + P), reading a and g, and two [T, K] written and multiplied."""
    columns, rows = shape.columns or 0, shape.outputs + shape.inputs
    moved = _rounded(work) * rows + 2 * work.element * columns
    return columns * rows + work.balance * moved


def _rounded(work: Work) -> int:
    """Bytes that a number of a or g moves: it is read, and rounded where the queries are."""
    return _FLOAT + (2 * work.element if work.element < _FLOAT else 0)


def route_macs(route: str, shape: ModuleShape, work: Work) -> float:
    """MACs a token of a route's matrix products alone; what is done once is spread over the scan.

    The shared route is counted as a dense one, which it is at most.
    """
    weights, columns = shape.outputs * shape.inputs, shape.columns or 0
    if route == "factored":
        scored = columns * work.queries if work.token_scores else 0
        return columns * (shape.outputs + shape.inputs) + scored
    once = columns * weights / work.scanned
    if work.token_scores:
        return work.queries * weights + once
    return weights + work.queries * weights / work.tokens + once


def dense_bytes(shape: ModuleShape, work: Work) -> int:
    return work.queries * shape.outputs * shape.inputs * work.element


def choose_routes(
    shapes: Mapping[str, ModuleShape], work: Work, *, memory: float, forced: str
) -> dict[str, str]:
    """`dense` or `factored` for every module; `forced` is auto or a route.

    `memory` are the bytes that dense queries may take together: where not all fit, those that
    save most a byte do. Queries stored dense have no other route.
    """
    routes = {n: "dense" if s.columns is None else "factored" for n, s in shapes.items()}
    if forced != "auto":
        return {name: forced if shapes[name].columns is not None else "dense" for name in routes}
    left, gains = memory, []
    for name, shape in shapes.items():
        if shape.columns is not None:
            saved = factored_cost(shape, work) - dense_cost(shape, work)
            gains.append((saved / dense_bytes(shape, work), name))
    for gain, name in sorted(gains, reverse=True):
        size = dense_bytes(shapes[name], work)
        if gain > 0 and size <= left:
            routes[name], left = "dense", left - size
    return routes
