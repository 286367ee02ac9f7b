"""Correlations are numpy's and scipy's, a query at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from inflcli.validation import correlation


def test_by_query():
    torch.manual_seed(0)
    truth = torch.randn(3, 50, dtype=torch.float64)
    estimate = truth + torch.tensor([[0.1], [1.0], [5.0]]) * torch.randn(3, 50, dtype=torch.float64)
    found = correlation(estimate, truth)
    for index in range(3):
        one, other = estimate[index].numpy(), truth[index].numpy()
        assert found.pearson[index] == pytest.approx(np.corrcoef(one, other)[0, 1])
        ranks = [stats.rankdata(x) for x in (one, other)]
        assert found.spearman[index] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    summary = found.summary()
    assert summary["pearson_mean"] == pytest.approx(sum(found.pearson) / 3)
    assert summary["spearman_min"] == min(found.spearman)
    assert set(summary) == {"pearson_mean", "pearson_min", "spearman_mean", "spearman_min"}


def test_constant_scores_have_no_correlation():
    found = correlation(torch.zeros(1, 4), torch.arange(4.0)[None])
    assert math.isnan(found.pearson[0]) and math.isnan(found.summary()["pearson_mean"])


def test_other_points_are_refused():
    with pytest.raises(ValueError, match="against"):
        correlation(torch.zeros(2, 4), torch.zeros(2, 5))
