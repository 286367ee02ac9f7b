"""The Fisher information with sampled labels, as a sum over sequences' gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from inflcli.ekfac import LinearModel
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.linear import Batch, LinearModule
from inflcli.ekfac.solve import Apply

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
        self._size = sum(module.inputs * module.outputs for module in model.modules)
        fits = self._count * self._size * model.dtype.itemsize <= room
        self._kept = self._all() if fits else None

    def product(self, vectors: Matrices) -> Matrices:
        """E[DW <DW, v>] for K vectors."""
        total = {name: torch.zeros_like(v) for name, v in vectors.items()}
        for gradients in self._gradients() if self._kept is None else [self._kept]:
            along = self._along(gradients, vectors)
            for name, value in total.items():
                found = along @ gradients[name].flatten(1)
                value += found.view_as(value).to(value)
        return {name: value / self._count for name, value in total.items()}

    def inverse(self, damping: Mapping[str, float]) -> Apply | None:
        """(E[DW DWᵀ] + λI)⁻¹ up to rounding, by the gradients' Gram matrix.

        None if gradients are not kept, are more than the D parameters, or if a λ is 0. With D̃ the n
        gradients over sqrt(n λ) of their modules it is λ^-½ (I - D̃ᵀ (I + D̃ D̃ᵀ)⁻¹ D̃) λ^-½
        (Woodbury). Cost: n² D MACs and a Cholesky factor of n² float64 numbers; 2 n D MACs a vector
        then.
        """
        kept = self._kept
        if kept is None or self._count > self._size or min(damping.values()) <= 0:
            return None
        gram = torch.zeros(self._count, self._count, dtype=torch.float64, device=self._model.device)
        for name, one in kept.items():
            flat = one.flatten(1)
            gram += (flat @ flat.T).double() / (self._count * damping[name])
        gram.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(gram)

        def solve(b: Matrices) -> Matrices:
            x = {name: v / damping[name] for name, v in b.items()}
            along = self._along(kept, x).T.double()
            weights = torch.cholesky_solve(along, factor).T / self._count
            for name, value in x.items():
                found = weights.to(kept[name]) @ kept[name].flatten(1)
                value -= found.view_as(value).to(value) / damping[name]
            return x

        return solve

    def _along(self, gradients: Matrices, vectors: Matrices) -> Tensor:
        """<DW, v>, [K, B]."""
        parts = [
            v.flatten(1).to(gradients[name]) @ gradients[name].flatten(1).T
            for name, v in vectors.items()
        ]
        return torch.stack(parts).sum(0)

    def _all(self) -> Matrices:
        """Every gradient, [n, P, M] by module."""
        found = {
            module.name: torch.empty(
                self._count,
                module.outputs,
                module.inputs,
                dtype=self._model.dtype,
                device=self._model.device,
            )
            for module in self._model.modules
        }
        first = 0
        for gradients in self._gradients():
            count = len(next(iter(gradients.values())))
            for name, one in gradients.items():
                found[name][first : first + count] = one
            first += count
        return found

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
