"""How far two scans of the same sequences agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Agreement:
    """Of one query's scores in two scans, over the sequences that both scored."""

    count: int
    pearson: float
    spearman: float
    overlap: float
    """The share of the one's top k that are among the other's."""
    k: int


def agreement(first: NDArray[np.floating], second: NDArray[np.floating], k: int = 100) -> Agreement:
    """Compare scores [N] of the same sequences, NaN where one was not scored. Cost: sorting.

    Correlations are NaN where either is constant, or there are fewer than two sequences.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    one, other = first[both].astype(np.float64), second[both].astype(np.float64)
    k = min(k, len(one))
    constant = len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0
    tops = [set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (one, other)]
    return Agreement(
        len(one),
        float("nan") if constant else float(stats.pearsonr(one, other).statistic),
        float("nan") if constant else float(stats.spearmanr(one, other).statistic),
        len(tops[0] & tops[1]) / k if k else float("nan"),
        k,
    )
