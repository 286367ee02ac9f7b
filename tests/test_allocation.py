"""A query's ranks are those of a brute-force sort of its modules' components by σ² / (M + P)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inflcli.ekfac import allocate

SHAPES = [(6, 40), (12, 9), (30, 5), (8, 8)]


def made(seed: int) -> list[Tensor]:
    """Matrices whose spectra decay at different rates, from different heights."""
    torch.manual_seed(seed)
    found = []
    for number, shape in enumerate(SHAPES):
        u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        steps = torch.arange(len(s), dtype=torch.float64)
        found.append(u @ torch.diag(3.0**number * (steps + 1) ** -(0.3 + number)) @ v)
    return found


def brute_force(matrices: list[Tensor], share: float) -> list[int]:
    """Take the densest component that is left, one by one, until the share is reached."""
    whole = sum(float(v.square().sum()) for v in matrices)
    left = [
        (float(s**2) / sum(v.shape), float(s**2), number)
        for number, v in enumerate(matrices)
        for s in torch.linalg.svdvals(v)
    ]
    ranks, kept = [0] * len(matrices), 0.0
    for _, energy, number in sorted(left, reverse=True):
        if kept >= share * whole:
            break
        ranks[number], kept = ranks[number] + 1, kept + energy
    return ranks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.9999])
def test_against_brute_force(seed, share):
    matrices = made(seed)
    energies = [torch.linalg.svdvals(v).square() for v in matrices]
    whole = sum(float(v.square().sum()) for v in matrices)
    found = allocate(energies, [sum(shape) for shape in SHAPES], share * whole)
    assert found == brute_force(matrices, share)


def test_the_size_of_a_component_counts():
    """Two components of one energy: the smaller one goes first."""
    energies = [torch.tensor([4.0]), torch.tensor([4.0])]
    assert allocate(energies, [100, 10], 3.0) == [0, 1]
    assert allocate(energies, [10, 100], 3.0) == [1, 0]


def test_more_than_there_is():
    """All that holds energy is taken, and nothing that holds none."""
    energies = [torch.tensor([4.0, 1.0, 0.0]), torch.tensor([0.0, 0.0])]
    assert allocate(energies, [10, 10], 100.0) == [2, 0]
    assert allocate([torch.zeros(3)], [10], 0.0) == [0]
