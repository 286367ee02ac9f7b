"""A truncation keeps the exact SVD's energy, to 1e-3 of the whole where it is randomised, and says
rightly what it keeps.
"""

from __future__ import annotations

import pytest
import torch
from oracle import relative
from torch import Tensor

from inflcli.ekfac import energy, truncate

SHAPES = [(240, 330), (330, 240)]
SPECTRA = {
    "flat": lambda k: torch.ones_like(k),
    "slow": lambda k: (k + 1) ** -0.5,
    "medium": lambda k: (k + 1) ** -1.0,
    "steep": lambda k: 10.0 ** (-k / 10),  # 1e6 over 60 components, below float32 after that
    "low rank": lambda k: (k < 3).to(k.dtype),
}


def made(shape: tuple[int, int], spectrum: str, count: int = 3) -> Tensor:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(count, *shape).double(), full_matrices=False)
    values = SPECTRA[spectrum](torch.arange(min(shape)).double())
    return (u * values) @ v


def residual(v: Tensor, rank: int, single: bool) -> Tensor:
    """The share of ‖V‖² that the truncation leaves, from its factors alone."""
    found = truncate(v, rank, single=single)
    return energy(v.double() - found.left.double() @ found.right.double().mT) / energy(v.double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", ["slow", "medium", "steep", "low rank"])
@pytest.mark.parametrize("rank", [1, 8, 32, 64])
@pytest.mark.parametrize("single", [False, True])
def test_randomised_against_the_exact_svd(shape, spectrum, rank, single):
    v = made(shape, spectrum)
    values = torch.linalg.svdvals(v).square()
    best = values[:, rank:].sum(1) / values.sum(1)
    left = residual(v.float(), rank, single)
    assert (left < best + 1e-3).all()
    assert (left > best - 1e-5).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("single", [False, True])
def test_energies_are_those_of_the_factors(shape, spectrum, single):
    """Of every leading part of them: each is a projection of V."""
    v = made(shape, spectrum).float()
    found, bar = truncate(v, 32, single=single), 1e-4 if single else 1e-5
    for rank in (1, 5, 32):
        product = found.left[..., :rank].double() @ found.right[..., :rank].double().mT
        kept = found.energies[:, :rank].sum(1)
        assert relative(kept, energy(product)) < bar
        assert relative(kept, energy(v) - energy(v.double() - product)) < bar


@pytest.mark.parametrize("shape", [*SHAPES, (16, 24), (24, 16), (1, 7)])
def test_exact_in_float64(shape):
    v = made(shape, "slow")
    u, s, w = torch.linalg.svd(v, full_matrices=False)
    rank = min(5, *shape)
    found = truncate(v, rank)
    best = (u[..., :rank] * s[..., None, :rank]) @ w[..., :rank, :]
    assert relative(found.left @ found.right.mT, best) < 1e-9
    assert relative(found.energies, s[..., :rank].square()) < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_do_not_matter(shape):
    """The same factors alone, and in another stack, whatever the global generator's state."""
    v = made(shape, "slow").float()
    whole = truncate(v, 16)
    torch.manual_seed(1)
    for number in range(len(v)):
        alone = truncate(v[number : number + 1], 16)
        product = alone.left[0] @ alone.right[0].T
        assert relative(product, whole.left[number] @ whole.right[number].T) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_any_scale(scale):
    """Zero, and squares beyond float32."""
    v = made(SHAPES[0], "medium").float() * scale
    found = truncate(v, 16)
    expected = truncate(v.double() * (1 / scale if scale else 0), 16)
    share = (expected.energies.sum(1) * scale**2, found.energies.sum(1))
    assert torch.isfinite(found.left).all()
    assert torch.isfinite(found.right).all()
    assert torch.allclose(*share, rtol=1e-3)


def test_scores_of_a_randomised_truncation():
    """Against gradients of rank 20, as scores are: as near to V's scores as the exact SVD's."""
    v = made(SHAPES[0], "medium", count=1)
    torch.manual_seed(2)
    gradients = torch.randn(300, SHAPES[0][0], 20) @ torch.randn(300, 20, SHAPES[0][1])

    def scores(matrix: Tensor) -> Tensor:
        return (gradients.double() * matrix).sum((1, 2))

    def product(dtype: torch.dtype) -> Tensor:
        found = truncate(v.to(dtype), 32)
        return (found.left[0] @ found.right[0].T).double()

    exact, randomised = (
        relative(scores(product(dtype)), scores(v[0])) for dtype in (torch.float64, torch.float32)
    )
    assert randomised < 1.1 * exact
