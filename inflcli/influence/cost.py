"""Predicted cost of the scoring routes, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A multiply-add outside a matrix product is bound by memory, not arithmetic: about this many of a
# matrix product's cost as much.
_ELEMENTWISE = 16


@dataclass(frozen=True)
class ModuleShape:
    """P, M, and the columns K that all queries' factors have together (None: stored dense)."""

    outputs: int
    inputs: int
    columns: int | None


def dense_cost(shape: ModuleShape, queries: int, tokens: float) -> float:
    """MACs a token of the dense route: M P, and Q M P / T."""
    weights = shape.outputs * shape.inputs
    return weights + queries * weights / tokens + _ELEMENTWISE * weights / tokens


def factored_cost(shape: ModuleShape) -> float:
    """MACs a token of the factored route: K (M + P), and K products elementwise."""
    columns = shape.columns or 0
    return columns * (shape.outputs + shape.inputs) + _ELEMENTWISE * columns


def dense_bytes(shape: ModuleShape, queries: int, element: int) -> int:
    return queries * shape.outputs * shape.inputs * element


def choose_routes(
    shapes: Mapping[str, ModuleShape],
    *,
    queries: int,
    tokens: float,
    element: int,
    memory: float,
    forced: str,
) -> dict[str, str]:
    """`dense` or `factored` for every module.

    `tokens` is the mean length of a sequence, `element` the bytes of a number, `memory` the bytes
    that dense queries may take together: where not all fit, those that save most a byte do.
    Queries stored dense have no other route. `forced` is auto, dense or factored.
    """
    routes = {n: "dense" if s.columns is None else "factored" for n, s in shapes.items()}
    if forced != "auto":
        return {name: forced if shapes[name].columns is not None else "dense" for name in routes}
    left, gains = memory, []
    for name, shape in shapes.items():
        if shape.columns is not None:
            saved = factored_cost(shape) - dense_cost(shape, queries, tokens)
            gains.append((saved / dense_bytes(shape, queries, element), name))
    for gain, name in sorted(gains, reverse=True):
        size = dense_bytes(shapes[name], queries, element)
        if gain > 0 and size <= left:
            routes[name], left = "dense", left - size
    return routes
