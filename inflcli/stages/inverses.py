"""The damped inverses of all modules, from the factors on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from inflcli.artifacts import factors as store
from inflcli.artifacts.factors import Eigen, FactorsReader
from inflcli.config import PreconditionConfig
from inflcli.ekfac import Basis, DampedInverse, damping_value, kfac_eigenvalues
from inflcli.errors import BadInput
from inflcli.model.load import LoadedModel
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

_NEEDS = {"ekfac": ("ekfac",), "kfac": ("ekfac", "kfac"), "identity": ("ekfac", "kfac", "identity")}


def require_curvature(factors: FactorsReader, config: PreconditionConfig) -> None:
    """Raises BadInput for a curvature that the factors were not fitted for."""
    if factors.curvature not in _NEEDS[config.curvature]:
        raise BadInput(
            f"--curvature {config.curvature} needs factors fitted for it; "
            f"{factors.artifact.path} holds {factors.curvature}",
            f"fit them with --curvature {config.curvature}",
        )


def read_inverses(
    folder: Path,
    mean_tokens: float,
    modules: list[TrackedModule],
    config: PreconditionConfig,
    model: LoadedModel,
) -> dict[str, DampedInverse]:
    """Of the factors in `folder`, fitted on sequences of `mean_tokens` predicted tokens.

    Modules that share their input share its Q_A in memory, too. Bases are bfloat16 when fast.
    Raises BadInput for a singular curvature, NumericalFault.
    """
    if config.curvature == "identity":
        return {module.name: DampedInverse(None, None, 0.0) for module in modules}
    device = model.device
    held = torch.bfloat16 if config.precision == "fast" else None
    inputs: dict[str, tuple[Eigen, Basis]] = {}
    inverses = {}
    for module in modules:
        shared = module.shares_input_with
        if shared not in inputs:
            found = store.read_input(folder, shared)
            inputs[shared] = found, _basis(found, held, device)
        (eigen_a, basis_a), eigen_s = inputs[shared], store.read_output(folder, module.name)
        if config.curvature == "ekfac":
            eigenvalues = store.read_corrected(folder, module.name)
        else:
            eigenvalues = kfac_eigenvalues(eigen_s.values, eigen_a.values, mean_tokens)
        common.require_finite(eigenvalues, "curvature", module.name)
        damping = damping_value(eigenvalues, config.damping_factor, config.damping)
        eigenvalues = eigenvalues.to(device=device, dtype=model.statistics_dtype)
        _require_regular(eigenvalues, damping, module.name)
        bases = basis_a, _basis(eigen_s, held, device)
        inverses[module.name] = DampedInverse(bases, eigenvalues + damping, damping)
    return inverses


def _basis(eigen: Eigen, dtype: torch.dtype | None, device: torch.device) -> Basis:
    return Basis(tuple(block.to(device=device, dtype=dtype) for block in eigen.vectors))


def _require_regular(eigenvalues: torch.Tensor, damping: float, name: str) -> None:
    # A square of rounding errors is no curvature: 1 / Λ there would be noise without bound.
    noise = torch.finfo(eigenvalues.dtype).eps ** 2 * float(eigenvalues.sum())
    if not bool((eigenvalues + damping > noise).all()):
        raise BadInput(
            f"the curvature of module {name} is singular with damping {damping:g}",
            "give a higher --damping or --damping-factor",
        )
