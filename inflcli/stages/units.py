"""Units of work of a pass, and which process does which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inflcli.artifacts.corpus import CorpusReader
from inflcli.distributed import Ranks
from inflcli.model.batches import Batch, plan_batches, read_batches
from inflcli.model.load import LoadedModel
from inflcli.model.tracked import TrackedModule


@dataclass(frozen=True)
class Unit:
    """Sequences that one process does, and records as done together."""

    number: int
    ids: NDArray[np.int64]
    split: int = 0
    """Of a fit: the one that its sequences belong to."""


@dataclass(frozen=True)
class Part:
    """A batch of a unit, and whether it is the unit's first and last."""

    batch: Batch
    unit: Unit | None
    """None for a batch that only keeps step with other ranks: its results count nowhere."""
    first: bool = False
    last: bool = False


def read_units(
    units: Sequence[Unit],
    ranks: Ranks,
    what: str,
    corpus: CorpusReader,
    model: LoadedModel,
    batch_size: int | None,
) -> Iterator[Part]:
    """The batches of the units that fall to this process, read one ahead of their use.

    A process asks for a unit when it needs one, so that a slow one does not hold up the others;
    but where all must run as many passes, units are dealt out in turn.
    """
    lengths, marks = corpus.lengths, deque[tuple[Unit | None, bool, bool]]()

    def plan(unit: Unit) -> list[NDArray[np.int64]]:
        return plan_batches(unit.ids, lengths[unit.ids], batch_size)

    def claimed() -> Iterator[NDArray[np.int64]]:
        for unit in ranks.claims(what, units):
            yield from marked(unit, plan(unit))

    def dealt() -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(units), ranks.size):
            plans = [plan(unit) for unit in units[first : first + ranks.size]]
            mine = plans[ranks.rank] if ranks.rank < len(plans) else []
            if mine:
                yield from marked(units[first + ranks.rank], mine)
            for _ in range(max(map(len, plans)) - len(mine)):
                marks.append((None, False, False))
                yield plans[0][-1][-1:]

    def marked(unit: Unit, batches: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        for number, ids in enumerate(batches):
            marks.append((unit, number == 0, number == len(batches) - 1))
            yield ids

    planned = dealt() if model.lockstep else claimed()
    for batch in read_batches(planned, corpus.take, lengths, model.device):
        yield Part(batch, *marks.popleft())


def ignore(module: TrackedModule, a: Tensor, g: Tensor) -> None:
    """A consumer for batches that count nowhere."""
