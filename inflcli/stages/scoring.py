"""The queries of a scan by the route of each module, and the scores that they add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflcli import console
from inflcli.artifacts.queries import QueriesReader
from inflcli.influence.cost import BALANCE, ModuleShape, Work, choose_routes
from inflcli.influence.dense import (
    DenseQueries,
    ExpandedQueries,
    GradientQueries,
    Gradients,
    Scratch,
    gradients_waiting,
)
from inflcli.influence.factored import FactoredQueries
from inflcli.influence.shared import SharedQueries, share
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

_SHARED_KEEPS = 0.999
"""Share of the queries' squared norm that the bases of the shared route span."""

Queries = GradientQueries | FactoredQueries | SharedQueries


@dataclass
class Scorer:
    """Adds up the scores of a chunk of sequences, by depth group, as their gradients arrive."""

    queries: Mapping[str, Queries]
    groups: Mapping[str, int]
    shape: tuple[int, int]
    """Q and G."""
    width: int | None
    """Positions a sequence; None leaves the token scores out."""
    waiting: int
    """Sequences whose gradients wait for each other, on the dense route; 0 if they do not."""
    element: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        dense = {
            name: queries
            for name, queries in self.queries.items()
            if isinstance(queries, GradientQueries) and self.width is None
        }
        dtype = next((queries.dtype for queries in dense.values()), self.element)
        sizes = [queries.size for queries in dense.values()]
        scratch = Scratch.for_modules(sizes, dtype, self.device)
        self._gradients = {
            name: Gradients(queries, scratch, self.waiting) for name, queries in dense.items()
        }

    def begin(self, sequences: int) -> None:
        """Start a chunk of that many sequences; `end` ends it."""
        queries, groups = self.shape
        self.layers = self._zeros(sequences, queries, groups)
        self.tokens = None if self.width is None else self._zeros(sequences, self.width, queries)
        # Looked at once a chunk: a device is not made to wait after every module.
        self._finite: dict[str, Tensor] = {}

    def place(self, rows: Tensor) -> None:
        """Say which sequences of the chunk the next batch holds."""
        self._rows = rows

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        a, g, name = a.to(self.element), g.to(self.element), module.name
        if self.tokens is not None:
            by_token = self.queries[name].token_scores(a, g)
            self.tokens[self._rows, : by_token.shape[1]] += by_token
            self._add(name, self._rows, by_token.sum(1))
        elif name in self._gradients:
            for rows, scores in self._gradients[name].add(self._rows, a, g):
                self._add(name, rows, scores)
        else:
            self._add(name, self._rows, self.queries[name].sequence_scores(a, g))

    def end(self) -> None:
        """Score what waits. Raises NumericalFault naming a module whose scores are not finite."""
        for name, gradients in self._gradients.items():
            for rows, scores in gradients.flush(self.element):
                self._add(name, rows, scores)
        for name, finite in self._finite.items():
            if not bool(finite):
                raise common.not_finite("score", name)

    def _add(self, name: str, rows: Tensor, scores: Tensor) -> None:
        self.layers[rows, :, self.groups[name]] += scores
        finite = torch.isfinite(scores).all()
        self._finite[name] = finite & self._finite.get(name, True)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.element, device=self.device)


def pick_routes(
    loaded: Mapping[str, DenseQueries | FactoredQueries],
    modules: list[TrackedModule],
    work: Work,
    *,
    memory: float,
    forced: str,
) -> dict[str, str]:
    """The route of every module; `memory` are the bytes that gradients may take as they wait."""
    shapes = {}
    for module in modules:
        queries = loaded[module.name]
        columns = queries.left.shape[1] if isinstance(queries, FactoredQueries) else None
        shapes[module.name] = ModuleShape(module.outputs, module.inputs, columns)
    return choose_routes(shapes, work, memory=memory, forced=forced)


def scan_work(
    lengths: NDArray[np.int32],
    batches: int,
    *,
    chunk: int,
    queries: int,
    device: torch.device,
    precision: str,
    element: int,
    token_scores: bool,
) -> Work:
    """What the routes are chosen for: a scan of sequences of these lengths, in so many batches.

    Gradients wait within a `chunk` of sequences. `element` are the bytes of a number of a query.
    """
    sequences = len(lengths) / batches
    return Work(
        queries=queries,
        sequences=sequences,
        waiting=gradients_waiting(queries, sequences, chunk),
        tokens=float(lengths.mean()),
        element=element,
        balance=BALANCE["cpu" if device.type == "cpu" else "cuda", precision],
        token_scores=token_scores,
    )


def on_route(queries: DenseQueries | FactoredQueries, route: str) -> Queries:
    """Queries as a route wants them."""
    if isinstance(queries, DenseQueries):
        return queries
    if route == "shared":
        return share(queries, _SHARED_KEEPS)
    return ExpandedQueries.of(queries) if route == "dense" else queries.padded()


def describe_routes(queries: Mapping[str, Queries], routes: Mapping[str, str]) -> None:
    """Say which route was taken for how many modules, and with -v for which."""
    for route in sorted(set(routes.values())):
        names = [name for name, taken in routes.items() if taken == route]
        console.info(f"route {route} for {len(names)} of {len(routes)} modules")
        console.detail("  " + ", ".join(names))
    for name, entry in queries.items():
        if isinstance(entry, SharedQueries):
            sizes = f"{entry.left.shape[1]} of {entry.left.shape[0]} outputs and "
            sizes += f"{entry.right.shape[1]} of {entry.right.shape[0]} inputs"
            console.detail(f"  {name}: {sizes} keep {entry.kept:.1%}")


def load_queries(
    reader: QueriesReader, name: str, held: torch.dtype, device: torch.device
) -> DenseQueries | FactoredQueries:
    """One module's queries, held in that type."""
    stored = {key: value.to(device) for key, value in reader.matrices(name).items()}
    if "dense" in stored:
        return DenseQueries(stored["dense"].to(held))
    return FactoredQueries(
        stored["left"].to(held), stored["right"].to(held), stored["owner"], len(reader.ids)
    )
