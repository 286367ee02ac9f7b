"""The damped inverses of all modules, from the factors on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from inflcli.artifacts import factors as store
from inflcli.artifacts.factors import Eigen, FactorsReader
from inflcli.config import AUTO, CURVATURES, PreconditionConfig, has_corrected
from inflcli.ekfac import Basis, DampedInverse, damping_value, kfac_eigenvalues
from inflcli.errors import BadInput
from inflcli.model.load import LoadedModel
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

_BY_NUMBER = "give --damping or --damping-factor a number"
_NEEDS = {
    "ekfac": ("ekfac",),
    "ec-shampoo": ("ec-shampoo",),
    "kfac": ("ekfac", "kfac"),  # the eigenvalues of ec-shampoo are not those of A and S
    "identity": CURVATURES,
}


def require_curvature(factors: FactorsReader, config: PreconditionConfig) -> None:
    """Raises BadInput for a curvature that the factors were not fitted for."""
    if factors.curvature not in _NEEDS[config.curvature]:
        raise BadInput(
            f"--curvature {config.curvature} needs factors fitted for it; "
            f"{factors.artifact.path} holds {factors.curvature}",
            f"fit them with --curvature {config.curvature}",
        )


def require_halves(config: PreconditionConfig, splits: int) -> None:
    """Raise BadInput where a fit of so many splits cannot choose what `--damping auto` takes."""
    if config.damping != AUTO:
        return
    if not has_corrected(config.curvature):
        raise BadInput(
            "--damping auto is what a fit's halves choose for corrected eigenvalues; "
            f"--curvature {config.curvature} has none",
            _BY_NUMBER,
        )
    if splits < 2:
        raise BadInput(
            "--damping auto is what a fit's halves choose, and --splits 1 keeps none apart",
            f"fit with --splits 2, or {_BY_NUMBER}",
        )


def chosen_damping(factors: FactorsReader, config: PreconditionConfig) -> dict[str, float]:
    """Of `--damping auto`, λ / mean Λ by module, as two halves of the fit chose it; else {}.

    Raises BadInput where they did not for every module.
    """
    if config.damping != AUTO:
        return {}
    path = factors.artifact.path
    # Factors that know nothing of splits are of an earlier version.
    require_halves(config, factors.artifact.manifest.config.get("splits", 2))
    found = store.read_damping_factors(path)
    lacking = [module["name"] for module in factors.modules if module["name"] not in found]
    if lacking:
        raise BadInput(
            f"{path} holds no damping for {lacking[0]}"
            + (f" and {len(lacking) - 1} more modules" if lacking[1:] else "")
            + ": an earlier version fitted it, or a half of its sequences has no gradient there",
            f"remove it and fit again, on two sequences at least, or {_BY_NUMBER}",
        )
    return found


def read_inverses(
    folder: Path,
    mean_tokens: float,
    modules: list[TrackedModule],
    config: PreconditionConfig,
    model: LoadedModel,
) -> dict[str, DampedInverse]:
    """Of the factors in `folder`, fitted on sequences of `mean_tokens` predicted tokens.

    Modules that share their input share its Q_A in memory, too. Bases are bfloat16 when fast. For
    `--damping auto` every module has a damping there (`chosen_damping`).
    Raises BadInput for a singular curvature, NumericalFault.
    """
    if config.curvature == "identity":
        return {module.name: DampedInverse(None, None, 0.0) for module in modules}
    device = model.device
    held = torch.bfloat16 if config.precision == "fast" else None
    chosen = store.read_damping_factors(folder) if config.damping == AUTO else {}
    absolute = None if isinstance(config.damping, str) else config.damping
    inputs: dict[str, tuple[Eigen, Basis]] = {}
    inverses = {}
    for module in modules:
        shared = module.shares_input_with
        if shared not in inputs:
            found = store.read_input(folder, shared)
            inputs[shared] = found, _basis(found, held, device)
        (eigen_a, basis_a), eigen_s = inputs[shared], store.read_output(folder, module.name)
        if has_corrected(config.curvature):
            eigenvalues = store.read_corrected(folder, module.name)
        else:
            eigenvalues = kfac_eigenvalues(eigen_s.values, eigen_a.values, mean_tokens)
        common.require_finite(eigenvalues, "curvature", module.name)
        factor = chosen[module.name] if config.damping == AUTO else config.damping_factor
        damping = damping_value(eigenvalues, factor, absolute)
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
