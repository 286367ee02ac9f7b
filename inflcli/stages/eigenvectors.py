"""The eigenvectors of a fit's covariances: as many matrices at a time as make a good batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from inflcli import console
from inflcli.artifacts import factors as store
from inflcli.ekfac import decompose_all
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

_AT_ONCE = 1 << 26
"""Bytes of covariances that are decomposed together: where matrices are small, many are."""


@dataclass(frozen=True)
class Matrix:
    """A covariance: A of the modules that share the input of module `name`, or S of the module."""

    side: str
    name: str
    size: int

    @property
    def key(self) -> str:
        return f"{self.side}:{self.name}"


def covariances(modules: Sequence[TrackedModule]) -> list[Matrix]:
    """Every matrix that a fit decomposes, in the modules' order."""
    found = []
    for module in modules:
        if module.name == module.shares_input_with:
            found.append(Matrix("A", module.name, module.inputs))
        found.append(Matrix("S", module.name, module.outputs))
    return found


def share_out(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank that does each piece of work: the dearest first, to whoever has least to do."""
    loads, owners = [0] * ranks, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda one: -costs[one]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def write_eigenvectors(
    folder: Path,
    wanted: Sequence[Matrix],
    covariance: Callable[[Matrix, torch.dtype], tuple[list[Tensor], float | None]],
    *,
    fast: bool,
    stored: torch.dtype,
    done: Callable[[list[Matrix]], None],
) -> None:
    """Decompose each `covariance(matrix, dtype)`, and write what is found.

    It gives the blocks of the mean in `dtype`, and how far two halves agree, which is written too.
    Files are written while the next batch is decomposed, and `done` is called after them.
    """

    def write(group: list[Matrix], eigens: list[store.Eigen]) -> None:
        for matrix, eigen in zip(group, eigens, strict=True):
            store.write_eigen(folder, matrix.side, matrix.name, eigen)
        done(group)

    element = torch.float32 if fast else torch.float64
    with (
        console.progress("eigenvectors", len(wanted), unit="matrices") as meter,
        common.Behind() as behind,
    ):
        for group in _batches(wanted):
            means, agreements = zip(*(covariance(one, element) for one in group), strict=True)
            found = decompose_all(means, fast=fast)
            eigens = [
                store.Eigen(values, basis.to(stored).blocks, agreement)
                for (values, basis), agreement in zip(found, agreements, strict=True)
            ]
            behind.do(partial(write, group, eigens))
            meter.advance(len(group))


def _batches(wanted: Sequence[Matrix]) -> Iterator[list[Matrix]]:
    group: list[Matrix] = []
    for matrix in wanted:
        if group and sum(8 * one.size**2 for one in [*group, matrix]) > _AT_ONCE:
            yield group
            group = []
        group.append(matrix)
    if group:
        yield group
