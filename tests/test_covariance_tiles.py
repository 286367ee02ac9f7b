"""A covariance whose upper triangle alone is added up is the whole one, wide or narrow, in blocks
or not.
"""

from __future__ import annotations

import pytest
import torch

from inflcli.ekfac import CovarianceSum
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
