"""The factors on disk: one safetensors file per shared input, and one or two per module.

`inputs/NAME.safetensors` holds λ_A and the blocks of Q_A of the modules that read one tensor, or
for EC-Shampoo of one module; `modules/NAME.safetensors` holds λ_S and the blocks of Q_S;
`corrected/NAME.safetensors`, where eigenvalues are corrected, Λ. Each also holds how far two halves
of the data agreed on it, where that is known; Λ's also the damping that they chose.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact

_AGREEMENT = "agreement"
_DAMPING = "damping_factor"
_SIDES = {"A": "inputs", "S": "modules", "corrected": "corrected"}


@dataclass(frozen=True)
class Eigen:
    """λ [D] and the diagonal blocks of Q."""

    values: Tensor
    vectors: tuple[Tensor, ...]
    agreement: float | None = None
    """Of two halves of the data (`inflcli.ekfac.stability`); None is not known."""

    def tensors(self) -> dict[str, Tensor]:
        named = {f"vectors.{number}": block for number, block in enumerate(self.vectors)}
        return {"values": self.values, **named, **_agreed(self.agreement)}

    @classmethod
    def parse(cls, tensors: dict[str, Tensor]) -> Eigen:
        count = sum(name.startswith("vectors.") for name in tensors)
        vectors = tuple(tensors[f"vectors.{i}"] for i in range(count))
        agreement = tensors.get(_AGREEMENT)
        return cls(tensors["values"], vectors, None if agreement is None else float(agreement))


def write_eigen(folder: Path, side: str, name: str, eigen: Eigen) -> None:
    """Write λ_A and Q_A of the modules that share the input of module `name`, or its λ_S and Q_S.

    `side` is A or S.
    """
    _write(folder / _SIDES[side] / f"{name}.safetensors", eigen.tensors())


def write_corrected(
    folder: Path,
    name: str,
    corrected: Tensor,
    agreement: float | None = None,
    damping_factor: float | None = None,
) -> None:
    """Write Λ [P, M] of a module."""
    tensors = {"corrected": corrected, **_agreed(agreement)}
    if damping_factor is not None:
        tensors[_DAMPING] = torch.tensor(damping_factor, dtype=torch.float64)
    _write(folder / "corrected" / f"{name}.safetensors", tensors)


def _agreed(agreement: float | None) -> dict[str, Tensor]:
    if agreement is None:
        return {}
    return {_AGREEMENT: torch.tensor(agreement, dtype=torch.float64)}


def read_agreements(folder: Path, side: str) -> dict[str, float]:
    """How far two halves agreed on A, S or corrected, by module, where that is known."""
    return _read_numbers(folder, side, _AGREEMENT)


def read_damping_factors(folder: Path) -> dict[str, float]:
    """λ / mean Λ as two halves chose it, by module, where they did."""
    return _read_numbers(folder, "corrected", _DAMPING)


def _read_numbers(folder: Path, side: str, key: str) -> dict[str, float]:
    paths = sorted((folder / _SIDES[side]).glob("*.safetensors"))
    found = {path: files.find_tensor(path, key) for path in paths}
    return {
        path.name.removesuffix(".safetensors"): float(number)
        for path, number in found.items()
        if number is not None
    }


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(exist_ok=True)
    files.write_tensors(path, tensors, {})


def modules_in(files: Collection[str], side: str) -> set[str]:
    """The modules whose A, S or corrected are among files, by their relative paths."""
    parts = [name.partition("/") for name in files]
    return {name.removesuffix(".safetensors") for where, _, name in parts if where == _SIDES[side]}


def read_input(folder: Path, name: str) -> Eigen:
    return Eigen.parse(files.read_tensors(folder / "inputs" / f"{name}.safetensors"))


def read_output(folder: Path, name: str) -> Eigen:
    return Eigen.parse(files.read_tensors(folder / "modules" / f"{name}.safetensors"))


def read_corrected(folder: Path, name: str) -> Tensor:
    return files.read_tensors(folder / "corrected" / f"{name}.safetensors")["corrected"]


@dataclass(frozen=True)
class FactorsReader:
    """A complete set of factors."""

    artifact: Artifact

    @classmethod
    def open(cls, path: Path) -> FactorsReader:
        return cls(Artifact.open(path, "fit-factors"))

    @property
    def curvature(self) -> str:
        return str(self.artifact.manifest.config["curvature"])

    @property
    def modules(self) -> list[dict[str, Any]]:
        """The tracked modules, as their fields."""
        return list(self.artifact.manifest.details["modules"])

    @property
    def mean_tokens(self) -> float:
        """T̄: predicted tokens a sequence, over the sequences of the fit; 0 without any."""
        counts = self.artifact.manifest.counts
        return float(counts["predicted_tokens"]) / max(float(counts["sequences"]), 1.0)
