"""The Fisher information with sampled labels, as a sum over sequences' gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from inflcli.ekfac import LinearModel
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.linear import Batch, LinearModule

ROOM = 1 << 30
"""Bytes of sequence gradients that are kept unless said otherwise."""


class SampledFisher:
    """E[DW DWᵀ] over batches, with labels that are the same in every product.

    The gradients are kept if they take no more than `room` bytes, and computed again for every
    product if they do.
    """

    def __init__(
        self,
        model: LinearModel,
        batches: Sequence[Batch],
        label_samples: int,
        seed: int,
        room: float = ROOM,
    ) -> None:
        self._model, self._batches = model, batches
        self._samples, self._seed = label_samples, seed
        self._count = label_samples * sum(len(batch[0]) for batch in batches)
        size = sum(module.inputs * module.outputs for module in model.modules)
        fits = self._count * size * model.dtype.itemsize <= room
        self._kept = list(self._gradients()) if fits else None

    def product(self, vectors: Matrices) -> Matrices:
        """E[DW <DW, v>] for K vectors."""
        total = {name: torch.zeros_like(v) for name, v in vectors.items()}
        for gradients in self._gradients() if self._kept is None else self._kept:
            parts = [
                v.flatten(1).to(gradients[name]) @ gradients[name].flatten(1).T
                for name, v in vectors.items()
            ]
            along = torch.stack(parts).sum(0)
            for name, value in total.items():
                found = along @ gradients[name].flatten(1)
                value += found.view_as(value).to(value)
        return {name: value / self._count for name, value in total.items()}

    def _gradients(self) -> Iterator[Matrices]:
        generator = torch.Generator(self._model.device).manual_seed(self._seed)
        for _ in range(self._samples):
            for batch in self._batches:
                found: Matrices = {}

                def consume(
                    module: LinearModule, a: Tensor, g: Tensor, found: Matrices = found
                ) -> None:
                    found[module.name] = g.mT @ a

                self._model.run(batch, consume, generator)
                yield found
