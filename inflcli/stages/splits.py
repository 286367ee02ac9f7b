"""A fit's sums, kept apart for splits of its sequences.

Two halves say how stable the factors are. And since the splits' sums are added in float64 and in
their order, whoever made them, shards that hold whole splits merge to what one process makes, to
the last bit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflcli.artifacts import factors as store
from inflcli.config import Shard
from inflcli.stages.statistics import Statistics

S = TypeVar("S", bound=Statistics)
T = TypeVar("T")
HOST = torch.device("cpu")


def split_sequences(
    ids: NDArray[np.int64], splits: int, shard: Shard | None = None
) -> list[NDArray[np.int64]]:
    """The sequences of every split; of a shard, what it has of each."""
    numbers = np.arange(len(ids))
    mine = numbers[shard.part(len(ids)) if shard else slice(None)]
    found = []
    for split in range(splits):
        part = numbers[Shard(split, splits).part(len(ids))]
        found.append(ids[np.intersect1d(part, mine, assume_unique=True)])
    return found


class Splits(Generic[S]):
    """Statistics of every split that has been begun. One is added to; the others wait on the host.

    Memory: the sums of all splits, on the device those of one.
    """

    def __init__(self, make: Callable[[], S], device: torch.device) -> None:
        self._make, self._device = make, device
        self._parts: dict[int, S] = {}
        self._last = 0

    def of(self, split: int) -> S:
        """The split's, to be added to."""
        if split != self._last and self._last in self._parts:
            self._parts[self._last].move(HOST)
        self._last = split
        if split not in self._parts:
            self._parts[split] = self._make()
        self._parts[split].move(self._device)
        return self._parts[split]

    def complete(self, splits: int) -> None:
        """Have all of them, on the host if they are several: as other processes have them."""
        for split in range(splits):
            self.of(split)
        if splits > 1:
            self._parts[self._last].move(HOST)

    def parts(self) -> Iterator[tuple[int, S]]:
        yield from sorted(self._parts.items())

    def state(self) -> dict[str, Tensor]:
        """All sums, by `sum_name`."""
        return {
            sum_name(split, name): tensor
            for split, part in self.parts()
            for name, tensor in part.state().items()
        }

    def counts(self) -> dict[str, Any]:
        return {str(split): part.counts() for split, part in self.parts()}

    def restore(self, state: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        """Go on from saved sums."""
        for split, part in counts.items():
            before = sum_name(int(split), "")
            mine = {
                name.removeprefix(before): state[name] for name in state if name.startswith(before)
            }
            self.of(int(split)).restore(mine, part)

    def check(self) -> None:
        """Raise NumericalFault if a sum is not finite."""
        for _, part in self.parts():
            part.check()


def sum_name(split: int, name: str) -> str:
    """What a split's sum is called where all are together; the split comes first."""
    return f"{split}/{name}"


def halves(parts: Iterable[tuple[int, T]], splits: int) -> list[list[T]]:
    """Sums over sequences of the first half of the splits, and of the second.

    `parts` are pairs of a split and a sum over sequences of it, by split. A half that has nothing
    is left out.
    """
    found: tuple[list[T], list[T]] = ([], [])
    for split, part in parts:
        found[split >= splits // 2].append(part)
    return [half for half in found if half]


def stability(folder: Path) -> dict[str, dict[str, float]]:
    """How far two halves of the data agreed on the factors in `folder`, over the modules.

    {} where that is not known.
    """
    sides = {"covariances": ("A", "S"), "corrected": ("corrected",)}
    found = {}
    for name, of in sides.items():
        values = [one for side in of for one in store.read_agreements(folder, side).values()]
        if values:
            found[name] = {"median": statistics.median(values), "least": min(values)}
    return found


def damping_factors(folder: Path) -> dict[str, float]:
    """λ / mean Λ as two halves of the data chose it, over the modules in `folder`.

    {} where they did not.
    """
    values = list(store.read_damping_factors(folder).values())
    if not values:
        return {}
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def told_by_halves(folder: Path) -> dict[str, Any]:
    """What a manifest's details say of them, for the factors in `folder`."""
    return {"stability": stability(folder), "damping_factors": damping_factors(folder)}
