"""How well two results agree, query by query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from inflcli.statistics.agreement import agreement


@dataclass(frozen=True)
class Correlation:
    """Of the scores of all points, by query; NaN where either scores every point alike."""

    pearson: list[float]
    spearman: list[float]

    def summary(self) -> dict[str, float]:
        """Mean and least over the queries of both; NaN if one is NaN."""
        both = {"pearson": self.pearson, "spearman": self.spearman}
        return {
            f"{name}_{word}": float(reduce(values))
            for name, values in both.items()
            for word, reduce in (("mean", np.mean), ("min", np.min))
        }


def correlation(estimate: Tensor, truth: Tensor) -> Correlation:
    """Pearson and Spearman of scores [K, N] with others [K, N], a query at a time.

    Raises ValueError if the shapes differ. Cost: sorting.
    """
    if estimate.shape != truth.shape:
        raise ValueError(f"scores {list(estimate.shape)} against {list(truth.shape)}")
    found = [
        agreement(one.numpy(), other.numpy()) for one, other in zip(estimate, truth, strict=True)
    ]
    return Correlation([one.pearson for one in found], [one.spearman for one in found])
