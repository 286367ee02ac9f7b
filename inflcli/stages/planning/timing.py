"""Measuring a device's rates: the stages' own work, on a handful of batches and queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inflcli.model.batches import Batch, make_batch, plan_batches
from inflcli.model.load import LoadedModel
from inflcli.stages.planning.measure import now
from inflcli.stages.planning.task import Reading, Task

_SECONDS, _BATCHES = 8.0, 24
"""A kind of pass is timed for about so long, and on no more batches. Where they are quick, many
show what malloc's gaps between blocks of changing sizes take; where they are slow, blocks are large
and malloc keeps none."""
_PATIENCE = 12
"""For the sequences that are wanted, so many times longer than that at most."""


@dataclass
class Timed:
    """What has been measured so far; see `Rates`."""

    task: Task
    model: LoadedModel
    folder: Path
    """For what the stages write."""
    base: float
    """Bytes held with the model loaded; see `measure.held`."""
    speed: dict[str, float] = field(default_factory=dict)
    working: dict[str, float] = field(default_factory=dict)
    columns: dict[str, float] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)
    text: dict[str, float] = field(default_factory=dict)
    candidate: float | None = None
    read: float = 1e9
    write: float = 1e9
    digest: float = 1e9

    def plans(self, ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The batches of a pass over `ids`."""
        return plan_batches(ids, self.task.text.lengths[ids], self.task.batch_size)

    def read_batch(self, ids: NDArray[np.int64]) -> Batch:
        text = self.task.text
        return make_batch(ids, text.take(ids), text.lengths[ids], self.model.device)

    def passes(
        self,
        kind: str,
        plans: list[NDArray[np.int64]],
        run: Callable[[Batch], None],
        fewest: int = 0,
    ) -> tuple[float, Reading]:
        """Run some batches, once the first has warmed up: their seconds, and what they read.

        The first one compiles what a shape needs, and touches its memory for the first time. With
        `fewest`, all batches together are to be of so many sequences, or of all.
        """
        run(self.read_batch(plans[0]))
        seconds, reading = 0.0, Reading(0.0, 0.0, 0.0)
        left = [min(1, len(plans) - 1)]
        while left:
            batch = self.read_batch(plans[left.pop(0)])
            begun = now(self.model.device)
            run(batch)
            taken = now(self.model.device) - begun
            if seconds == 0.0:
                # Those that there is time for, spread over the rest, in their order.
                more = min(int(_SECONDS / taken), _BATCHES)
                wanted = math.ceil(fewest / len(batch.ids)) - 1
                more = max(more, min(wanted, int(_PATIENCE * _SECONDS / taken)))
                more = min(more, len(plans) - 1) - 1
                left = sorted({int(n) for n in np.linspace(2, len(plans) - 1, max(more, 0))})
            seconds += taken
            reading = Reading(
                reading.sequences + len(batch.ids),
                reading.positions + batch.tokens.numel(),
                reading.predicted + batch.count,
            )
        self.sampled[f"{kind} tokens"] = reading.positions
        return seconds, reading
