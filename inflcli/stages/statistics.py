"""The fit's running sums, as consumers of (a, g): what a pass adds to, saves and restores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inflcli.config import FitFactorsConfig, shares_inputs
from inflcli.ekfac import Basis, CorrectedSum, CovarianceSum, add_sequences
from inflcli.ekfac.covariance import block_sizes
from inflcli.model.batches import Batch
from inflcli.model.load import LoadedModel
from inflcli.model.tracked import TrackedModule
from inflcli.shapes import round_up
from inflcli.stages.common import require_finite


class Statistics(Protocol):
    """Sums that a pass over the corpus fills."""

    def begin(self, batch: Batch) -> None:
        """Called before the passes of a batch."""

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        """Add one module's part of a backward pass."""

    def state(self) -> dict[str, Tensor]:
        """The sums, by a name that `restore` understands."""

    def counts(self) -> dict[str, Any]:
        """The counts that belong to the sums."""

    def restore(self, state: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        """Go on from saved sums."""

    def check(self) -> None:
        """Raise NumericalFault if a sum is not finite."""

    def move(self, device: torch.device) -> None:
        """Take the sums there."""


def covariance_bytes(module: TrackedModule, blocks: int, element: int, splits: int) -> int:
    """Bytes of a module's A (where it is the first of its sharers) and S, for every split."""
    sizes = block_sizes(module.outputs, blocks)
    if module.name == module.shares_input_with:
        sizes = sizes + block_sizes(module.inputs, blocks)
    return splits * element * sum(size**2 for size in sizes)


def corrected_bytes(module: TrackedModule, blocks: int, element: int, splits: int) -> int:
    """Bytes of a module's Λ, for every split, and of its bases."""
    bases = block_sizes(module.outputs, blocks) + block_sizes(module.inputs, blocks)
    return element * (splits * module.parameters + sum(size**2 for size in bases))


class CovarianceStatistics:
    """A per distinct input and S per module, over predicted tokens."""

    def __init__(self, modules: Sequence[TrackedModule], blocks: int, model: LoadedModel) -> None:
        kind = (model.statistics_dtype, model.device)
        self.inputs = {
            module.name: CovarianceSum.zeros(module.inputs, blocks, *kind)
            for module in modules
            if module.name == module.shares_input_with
        }
        self.outputs = {
            module.name: CovarianceSum.zeros(module.outputs, blocks, *kind) for module in modules
        }
        self.tokens = 0
        self._rows = torch.empty(0)
        self._added: set[str] = set()

    def begin(self, batch: Batch) -> None:
        self._rows = batch.rows
        self._added = set()
        self.tokens += len(self._rows)

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        # A does not depend on the labels: once a batch, whoever of the sharers comes first.
        shared = module.shares_input_with
        if shared not in self._added:
            self._added.add(shared)
            self.inputs[shared].add(*self._predicted(a))
        self.outputs[module.name].add(*self._predicted(g))

    def _predicted(self, x: Tensor) -> tuple[Tensor, int]:
        """Rows of the predicted positions, and how many zero ones follow them."""
        count, size = len(self._rows), round_up(len(self._rows), an_octave=16)
        rows = x.new_empty(size, x.shape[-1])
        torch.index_select(x.flatten(0, 1), 0, self._rows, out=rows[:count])
        rows[count:] = 0
        return rows, size - count

    def take(self, side: str, name: str) -> CovarianceSum:
        """Hand over A (side A) or S of a module; it is held here no longer."""
        return (self.inputs if side == "A" else self.outputs).pop(name)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{side}:{name}:{number}": block
            for side, sums in (("A", self.inputs), ("S", self.outputs))
            for name, total in sums.items()
            for number, block in enumerate(total.blocks)
        }

    def counts(self) -> dict[str, Any]:
        rows = {f"A:{name}": total.count for name, total in self.inputs.items()}
        rows |= {f"S:{name}": total.count for name, total in self.outputs.items()}
        return {"tokens": self.tokens, "rows": rows}

    def restore(self, state: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        self.tokens = counts["tokens"]
        for side, sums in (("A", self.inputs), ("S", self.outputs)):
            for name, total in sums.items():
                total.count = counts["rows"][f"{side}:{name}"]
                for number, block in enumerate(total.blocks):
                    block.copy_(state[f"{side}:{name}:{number}"])

    def check(self) -> None:
        for what, sums in (
            ("input covariance", self.inputs),
            ("gradient covariance", self.outputs),
        ):
            for name, total in sums.items():
                for block in total.blocks:
                    require_finite(block, what, name)

    def move(self, device: torch.device) -> None:
        for total in (*self.inputs.values(), *self.outputs.values()):
            total.move(device)


class SequenceStatistics(CovarianceStatistics):
    """E[DWᵀ DW] and E[DW DWᵀ] per module, over sequences and their label sets.

    No two modules share one: `find_tracked(..., share=False)`.
    """

    def begin(self, batch: Batch) -> None:
        super().begin(batch)
        self._extents = _extents(batch)
        self._room = round_up(sum(self._extents), an_octave=16)

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        sums = self.inputs[module.name], self.outputs[module.name]
        add_sequences(*sums, a, g, self._extents, self._room)


def covariance_statistics(
    config: FitFactorsConfig, modules: Sequence[TrackedModule], model: LoadedModel
) -> CovarianceStatistics:
    """What the first pass of a fit adds up: over tokens, or for `ec-shampoo` over sequences."""
    kind = CovarianceStatistics if shares_inputs(config.curvature) else SequenceStatistics
    return kind(modules, config.blocks, model)


def _extents(batch: Batch) -> list[int]:
    """Positions of each sequence that may hold a gradient, rounded up so that shapes are few."""
    longest = batch.tokens.shape[1]
    return [min(round_up(one, an_octave=8), longest) for one in batch.extents]


class CorrectedStatistics:
    """Λ per module, over sequences."""

    def __init__(
        self,
        modules: Sequence[TrackedModule],
        bases: Mapping[str, tuple[Basis, Basis]],
        model: LoadedModel,
    ) -> None:
        self.bases = bases
        self.sums = {
            module.name: CorrectedSum.zeros(
                module.outputs, module.inputs, model.statistics_dtype, model.device
            )
            for module in modules
        }
        self._extents: list[int] = []

    def begin(self, batch: Batch) -> None:
        self._extents = _extents(batch)

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        self.sums[module.name].add(a, g, self._extents, *self.bases[module.name])

    def state(self) -> dict[str, Tensor]:
        return {name: total.total for name, total in self.sums.items()}

    def counts(self) -> dict[str, Any]:
        return {name: total.count for name, total in self.sums.items()}

    def restore(self, state: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        for name, total in self.sums.items():
            total.count = counts[name]
            total.total.copy_(state[name])

    def check(self) -> None:
        for name, total in self.sums.items():
            require_finite(total.total, "second moment", name)

    def move(self, device: torch.device) -> None:
        for total in self.sums.values():
            total.move(device)
