"""Predicted cost of the scoring routes, and the choice between them.

Costs are in MACs a token: those of the matrix products, and what moves through memory beside them
at `balance` MACs a byte, which says how many multiply-adds the device does in the time of one byte.
The shapes of a batch are given, so the same choice comes out on every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inflcli.influence.dense import GRAIN, gradients_formed

BALANCE = {
    ("cpu", "exact"): 12.0,
    ("cpu", "single"): 12.0,
    ("cpu", "fast"): 40.0,
    ("cuda", "exact"): 20.0,
    ("cuda", "single"): 20.0,
    ("cuda", "fast"): 100.0,
}
"""MACs a byte, measured on CPUs with AMX; the rows for GPUs are from their data sheets."""
_FLOAT = 4
"""Bytes of a number between two products, which are float32."""


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
    waiting: int
    """Sequences whose DW wait for each other; 0 if they do not."""
    tokens: float
    """Tokens a sequence."""
    element: int
    """Bytes of a number of a query, of DW, and of g L and a R."""
    balance: float
    token_scores: bool = False


def dense_cost(shape: ModuleShape, work: Work) -> float:
    """Of the dense route: M P to form DW, Q M P / T to score it, and writing and reading DW.

    With token scores Q M P instead. Beside it, what making the queries dense takes, spread over
    what is then scored.
    """
    weights = shape.outputs * shape.inputs
    if work.token_scores:
        return _expansion(shape, work) + work.queries * (
            weights + _FLOAT * work.balance * 2 * shape.inputs
        )
    moved = 2 * work.element * weights / work.tokens
    moved += _rounded(work) * (shape.outputs + shape.inputs)
    scored = work.queries * weights / work.tokens
    return weights + scored + work.balance * moved + _expansion(shape, work)


def _expansion(shape: ModuleShape, work: Work) -> float:
    """K M P to make the queries dense, which are then written and read."""
    moved = 2 * work.element * work.queries * shape.outputs * shape.inputs
    return _expansion_macs(shape, work) + work.balance * moved / _scored(shape, work)


def _expansion_macs(shape: ModuleShape, work: Work) -> float:
    if shape.columns is None:
        return 0.0
    columns = max(shape.columns, GRAIN * work.queries)
    return columns * shape.outputs * shape.inputs / _scored(shape, work)


def _scored(shape: ModuleShape, work: Work) -> float:
    """Tokens that are scored for every time that the queries are made dense."""
    sequences = work.sequences
    if not work.token_scores:
        formed = gradients_formed(shape.outputs, shape.inputs)
        sequences = work.waiting or min(sequences, formed)
    return sequences * work.tokens


def factored_cost(shape: ModuleShape, work: Work) -> float:
    """Of the factored route: K (M + P), reading a and g, and two [T, K] written and multiplied."""
    columns, rows = shape.columns or 0, shape.outputs + shape.inputs
    moved = _rounded(work) * rows + 2 * work.element * columns
    return columns * rows + work.balance * moved


def _rounded(work: Work) -> int:
    """Bytes that a number of a or g moves: it is read, and rounded where the queries are."""
    return _FLOAT + (2 * work.element if work.element < _FLOAT else 0)


def route_macs(route: str, shape: ModuleShape, work: Work) -> float:
    """MACs a token of a route's matrix products alone.

    The shared route is counted as a dense one, which it is at most.
    """
    weights, columns = shape.outputs * shape.inputs, shape.columns or 0
    if route == "factored":
        scored = columns * work.queries if work.token_scores else 0
        return columns * (shape.outputs + shape.inputs) + scored
    if work.token_scores:
        return work.queries * weights + _expansion_macs(shape, work)
    return weights + work.queries * weights / work.tokens + _expansion_macs(shape, work)


def waiting_bytes(shape: ModuleShape, work: Work) -> float:
    """Bytes of the DW that wait for each other."""
    return 0.0 if work.token_scores else work.waiting * shape.outputs * shape.inputs * work.element


def choose_routes(
    shapes: Mapping[str, ModuleShape], work: Work, *, memory: float, forced: str
) -> dict[str, str]:
    """`dense` or `factored` for every module; `forced` is auto or a route.

    `memory` are the bytes that gradients may take as they wait: where not all fit, those that save
    most a byte do. Queries stored dense have no other route.
    """
    routes = {n: "dense" if s.columns is None else "factored" for n, s in shapes.items()}
    if forced != "auto":
        return {name: forced if shapes[name].columns is not None else "dense" for name in routes}
    left, gains = memory, []
    for name, shape in shapes.items():
        if shape.columns is not None:
            saved = factored_cost(shape, work) - dense_cost(shape, work)
            gains.append((saved / max(waiting_bytes(shape, work), 1.0), name))
    for gain, name in sorted(gains, reverse=True):
        size = waiting_bytes(shapes[name], work)
        if gain > 0 and size <= left:
            routes[name], left = "dense", left - size
    return routes
