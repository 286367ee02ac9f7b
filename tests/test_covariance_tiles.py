"""A covariance whose upper triangle alone is added up is the whole one, wide or narrow, in blocks
or not.
"""

from __future__ import annotations

import pytest
import torch
from oracle import relative

from inflcli.ekfac import CovarianceSum, mean_covariance
from inflcli.ekfac.covariance import block_sizes


@pytest.mark.parametrize("size", [1, 5, 511, 512, 513, 1100])
@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_the_mean_of_the_outer_products(size, blocks):
    torch.manual_seed(size)
    batches = [torch.randn(rows, size, dtype=torch.float64) for rows in (30, 7)]
    total = CovarianceSum.zeros(size, blocks, torch.float64, torch.device("cpu"))
    for batch in batches:
        total.add(batch)
    rows = torch.cat(batches)
    expected, first = rows.T @ rows / len(rows), 0
    for part, block in zip(block_sizes(size, blocks), total.mean(), strict=True):
        span = slice(first, first + part)
        torch.testing.assert_close(block, expected[span, span])
        assert torch.equal(block, block.T)
        first += part
    assert first == size


@pytest.mark.parametrize("size", [7, 600, 1100])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_mean_and_the_cosine_of_two_halves(size, blocks):
    """Of full matrices, whatever tiles are kept up."""
    torch.manual_seed(1)
    halves, full = [], []
    for count in (40, 25):
        rows = torch.randn(count, size, dtype=torch.float64)
        total = CovarianceSum.zeros(size, blocks, torch.float64, torch.device("cpu"))
        total.add(rows)
        halves.append([total])
        parts = rows.split([len(block) for block in total.blocks], dim=1)
        full.append([part.T @ part for part in parts])
    means, agreement = mean_covariance(halves, torch.float64, torch.device("cpu"))
    for mean, one, other in zip(means, *full, strict=True):
        assert relative(mean, (one + other) / 65) < 1e-12
    flat = [torch.cat([block.flatten() for block in blocks]) for blocks in full]
    expected = flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm())
    assert agreement == pytest.approx(float(expected), abs=1e-12)
