"""Fitting EK-FAC, or EC-Shampoo, on a network in memory, and the damped inverse that comes of it.

Axes: P outputs and M inputs of a module, its bias column counted; K vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from inflcli.ekfac.corrected import CorrectedSum, mean_corrected
from inflcli.ekfac.covariance import CovarianceSum
from inflcli.ekfac.eigenbasis import Basis, decompose
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.inverse import DampedInverse, damping_value, kfac_eigenvalues
from inflcli.ekfac.linear import Batch, LinearModel, LinearModule
from inflcli.ekfac.sequences import add_sequences

_SERVES = {"ekfac": ("ekfac", "kfac", "identity"), "ec-shampoo": ("ec-shampoo", "identity")}
"""What an inverse can be made of, by what was fitted."""


@dataclass(frozen=True)
class Inverse:
    """(G + λI)⁻¹ of every module."""

    modules: Mapping[str, DampedInverse]

    @property
    def damping(self) -> dict[str, float]:
        return {name: inverse.damping for name, inverse in self.modules.items()}

    def solve(self, vectors: Mapping[str, Tensor]) -> Matrices:
        """(G + λI)⁻¹ v of [K, P, M] by module. Cost: 2 P M (P + M) MACs a matrix."""
        return {name: self.modules[name].solve(v) for name, v in vectors.items()}


@dataclass(frozen=True)
class ModuleCurvature:
    """What was fitted of a module."""

    values_a: Tensor
    """Eigenvalues of A [M], ascending within a block."""
    basis_a: Basis
    values_s: Tensor
    basis_s: Basis
    corrected: Tensor
    """Λ [P, M]."""
    damping_factor: float | None = None
    """λ / mean Λ, as the first and the second half of the batches chose it."""


@dataclass(frozen=True)
class Curvature:
    """The factors of every module, and over what they were fitted."""

    modules: Mapping[str, ModuleCurvature]
    sequences: int
    positions: int
    """Predicted ones."""
    fitted: str = "ekfac"
    """What the bases are of: ekfac or ec-shampoo, as for `fit`."""

    def inverse(
        self,
        curvature: str | None = None,
        *,
        damping_factor: float | Literal["auto"] | None = 0.1,
        damping: float | Mapping[str, float] | None = None,
    ) -> Inverse:
        """The damped inverse with corrected eigenvalues (None, or what was fitted), with those of
        `kfac`, or none (`identity`, λ is 0 and the inverse I). λ is `damping`, which may differ by
        module, or `damping_factor` times the mean of a module's eigenvalues; auto takes the factor
        that the halves of the examples chose (`inflcli.ekfac.damping`). Raises ValueError where
        they chose none, as for `kfac`, and for a curvature that these factors do not serve; `kfac`
        needs those of `ekfac`."""
        curvature = curvature or self.fitted
        if curvature not in _SERVES[self.fitted]:
            raise ValueError(f"factors of {self.fitted} do not serve {curvature}")
        chosen = damping is None and damping_factor == "auto"
        if chosen and curvature != self.fitted:
            raise ValueError(f"halves choose a damping for {self.fitted}, not for {curvature}")
        found = {}
        for name, one in self.modules.items():
            if curvature == "identity":
                found[name] = DampedInverse(None, None, 0.0)
                continue
            values = one.corrected
            if curvature == "kfac":
                tokens = self.positions / max(self.sequences, 1)
                values = kfac_eigenvalues(one.values_s, one.values_a, tokens).to(values)
            if chosen and one.damping_factor is None:
                raise ValueError(f"no damping was chosen for {name}: fit on two batches or more")
            factor = one.damping_factor if isinstance(damping_factor, str) else damping_factor
            given = damping[name] if isinstance(damping, Mapping) else damping
            added = damping_value(values, factor, given)
            found[name] = DampedInverse((one.basis_a, one.basis_s), values + added, added)
        return Inverse(found)


def fit(
    model: LinearModel,
    batches: Sequence[Batch],
    *,
    curvature: str = "ekfac",
    blocks: int = 1,
    label_samples: int = 1,
    seed: int = 0,
) -> Curvature:
    """Fit EK-FAC on `batches`, with targets sampled from the model, in two passes over them.

    `curvature` is `ekfac`, whose eigenvectors are those of A = E[a aᵀ] and S = E[g gᵀ] over
    positions, or `ec-shampoo`: of E[DWᵀ DW] and E[DW DWᵀ] over examples, which sees that an
    example's positions are not independent. `blocks` cuts both into diagonal blocks (Eq. 33).
    Λ of the first and of the second half of the batches are kept apart, to choose a damping by.
    Everything is computed in the model's type, and decomposed in float64. Raises ValueError for an
    unknown curvature. Cost: 2 passes, 2 · label_samples backward passes; see `covariance`,
    `eigenbasis`, `corrected`, `sequences`.
    """
    if curvature not in _SERVES:
        raise ValueError(f"fit takes ekfac or ec-shampoo, not {curvature}")
    sums = {
        module.name: [
            CovarianceSum.zeros(size, blocks, model.dtype, model.device)
            for size in (module.inputs, module.outputs)
        ]
        for module in model.modules
    }
    sequences = positions = 0

    def add(module: LinearModule, a: Tensor, g: Tensor) -> None:
        sum_a, sum_s = sums[module.name]
        if curvature == "ec-shampoo":
            add_sequences(sum_a, sum_s, a, g, [a.shape[1]] * len(a))
            return
        rows = slice(None) if mask is None or mask.shape != a.shape[:2] else mask
        sum_a.add(a[rows].reshape(-1, module.inputs))
        sum_s.add(g[rows].reshape(-1, module.outputs))

    generator = torch.Generator(model.device).manual_seed(seed)
    for _ in range(label_samples):
        for batch in batches:
            mask = model.likelihood.predicted(batch[1])
            model.run(batch, add, generator)
            sequences += len(batch[0])
            positions += len(batch[0]) if mask is None else int(mask.sum())
    bases = {name: [decompose(one.mean()) for one in both] for name, both in sums.items()}
    corrected = {
        one.name: [
            CorrectedSum.zeros(one.outputs, one.inputs, model.dtype, model.device) for _ in range(2)
        ]
        for one in model.modules
    }
    turned = {name: [basis.to(model.dtype) for _, basis in both] for name, both in bases.items()}

    def correct(module: LinearModule, a: Tensor, g: Tensor) -> None:
        corrected[module.name][half].add(a, g, [a.shape[1]] * len(a), *turned[module.name])

    for _ in range(label_samples):
        for number, batch in enumerate(batches):
            half = number >= len(batches) // 2
            model.run(batch, correct, generator)
    found = {}
    for module in model.modules:
        (values_a, _), (values_s, _) = bases[module.name]
        basis_a, basis_s = turned[module.name]
        summed = mean_corrected([[one] for one in corrected[module.name]], model.device)
        fitted = values_a, basis_a, values_s, basis_s, summed.mean, summed.damping_factor
        found[module.name] = ModuleCurvature(*fitted)
    return Curvature(found, sequences, positions, curvature)
