"""The linear datamodelling score (LDS; Park et al. 2023, TRAK): do summed influences rank retrained
models?

Models are trained on random subsets S_1 .. S_m of N points. For query k an estimator predicts
g_k(S_j) = Σ over n in S_j of score[k, n], and LDS_k is Spearman's correlation over j of that with
f_k(S_j), the log p of the query under the model trained on S_j. A score is the influence of adding
a point, so 1 is perfect and -1 is the wrong sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.validation.points import Ids

Floats = NDArray[np.float64]
OVER = ("both", "subsets", "queries")


def subsets(points: int, count: int, share: float = 0.5, seed: int = 0) -> Ids:
    """`count` random subsets of `share` of the points, each sorted, [m, n].

    The first ones do not change with `count`. Raises ValueError for a share that leaves none out.
    """
    size = round(share * points)
    if not 0 < size < points:
        raise ValueError(f"a share of {share} of {points} points is no proper subset")
    drawn = [np.random.default_rng((seed, j)).permutation(points)[:size] for j in range(count)]
    return np.sort(np.array(drawn, np.int64).reshape(count, size), axis=1)


@dataclass(frozen=True)
class LdsResult:
    """How well one estimator ranks the models."""

    mean: float
    """Of LDS_k over queries."""
    interval: tuple[float, float]
    """Of the mean: percentiles of its bootstrap replicates."""
    per_query: Floats
    """LDS_k, [K]; 0 where the outputs or the predictions are all the same."""
    replicates: Floats
    """[R]."""
    level: float
    draws: tuple[Any, ...]
    """What decides which subsets and queries the replicates drew."""

    def minus(self, other: LdsResult) -> tuple[float, tuple[float, float]]:
        """The difference of two estimators' means, and its interval from paired replicates, which
        is narrower than either's. Raises ValueError where they are not of the same draws."""
        if self.draws != other.draws:
            raise ValueError("the two results are not of the same subsets, queries and resamples")
        return self.mean - other.mean, _interval(self.replicates - other.replicates, self.level)


def lds(
    scores: NDArray[np.floating],
    subsets: Ids | Sequence[Ids],
    outputs: NDArray[np.floating],
    *,
    over: str = "both",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LdsResult:
    """The LDS of scores [K, N] against models' outputs [m, K], trained on m subsets of ids.

    Where a subset was trained with several seeds, `outputs` is the mean over them. The bootstrap
    draws subsets, which the queries share, and queries, each with replacement, or only the one or
    the other (`over`): for these queries, `subsets` is what to take. Raises ValueError for shapes
    that do not fit, values that are not finite, and fewer than three subsets. Cost: 2 R K m
    numbers, for one query at a time.
    """
    if over not in OVER:
        raise ValueError(f"over is one of {', '.join(OVER)}, not {over}")
    if scores.ndim != 2 or outputs.shape != (len(subsets), len(scores)):
        raise ValueError(f"scores {scores.shape}, {len(subsets)} subsets, outputs {outputs.shape}")
    if len(subsets) < 3:
        raise ValueError("a rank correlation takes three subsets at least")
    values, found = np.asarray(scores, np.float64), np.asarray(outputs, np.float64).T
    if not (np.isfinite(values).all() and np.isfinite(found).all()):
        raise ValueError("scores or outputs are not finite")
    predicted = np.stack([values[:, ids].sum(1) for ids in subsets], axis=1)
    per_query = spearman(predicted, found)
    draw = np.random.default_rng(seed)
    queries, count = found.shape
    # How often each replicate has each subset, and each query.
    drawn, asked = (
        draw.multinomial(size, np.full(size, 1 / size), size=resamples)
        if over in ("both", axis)
        else np.ones((resamples, size))
        for axis, size in (("subsets", count), ("queries", queries))
    )
    replicates = (_spearman(predicted, found, drawn) * asked).sum(1) / queries
    return LdsResult(
        float(per_query.mean()),
        _interval(replicates, level),
        per_query,
        replicates,
        level,
        (queries, count, over, level, resamples, seed),
    )


@dataclass(frozen=True)
class Noise:
    """How far retraining with other seeds agrees with itself, which limits any estimator."""

    per_query: Floats
    """Spearman between the outputs of two seeds, mean over pairs of seeds, [K]."""
    between: float
    """Mean over queries."""
    ceiling: float
    """The LDS that the expected output itself would have against the mean of all seeds: the root
    of that mean's reliability, R r / (1 + (R - 1) r) by Spearman and Brown; mean over queries. It
    holds exactly for Pearson's correlation, and for ranks nearly."""


def noise(outputs: NDArray[np.floating]) -> Noise:
    """The noise of outputs [R, m, K] of the same m subsets under R seeds.

    Raises ValueError with fewer than two seeds or three subsets.
    """
    outputs = np.asarray(outputs, np.float64)
    if outputs.ndim != 3 or outputs.shape[0] < 2 or outputs.shape[1] < 3:
        raise ValueError(f"outputs {outputs.shape} are not of two seeds and three subsets or more")
    repeats = len(outputs)
    pairs = [spearman(outputs[i].T, outputs[j].T) for i, j in combinations(range(repeats), 2)]
    r = np.mean(pairs, axis=0)
    positive = r.clip(min=0.0)
    reliability = repeats * positive / (1 + (repeats - 1) * positive)
    return Noise(r, float(r.mean()), float(np.sqrt(reliability).mean()))


def spearman(first: Floats, second: Floats) -> Floats:
    """Of each row of two [K, m], ties at their mean rank, [K]; 0 where either is constant."""
    return _spearman(first, second, np.ones((1, first.shape[1])))[0]


def _spearman(first: Floats, second: Floats, counts: NDArray[Any]) -> Floats:
    """The same for R samples that have column j `counts[r, j]` times, [R, K]."""
    found = np.empty((len(counts), len(first)))
    size = counts.sum(1, keepdims=True)
    for row, values in enumerate(zip(first, second, strict=True)):
        one, other = (_ranks(some, counts) for some in values)
        one -= (counts * one).sum(1, keepdims=True) / size
        other -= (counts * other).sum(1, keepdims=True) / size
        product = (counts * one * other).sum(1)
        spread = np.sqrt((counts * one**2).sum(1) * (counts * other**2).sum(1))
        found[:, row] = np.divide(product, spread, out=np.zeros(len(counts)), where=spread > 0)
    return found


def _ranks(values: Floats, counts: NDArray[Any]) -> Floats:
    """The mean rank of values [m] within each sample, [R, m]: samples are not sorted anew."""
    order = np.argsort(values, kind="stable")
    below = np.zeros((len(counts), len(values) + 1))
    np.cumsum(counts[:, order], axis=1, out=below[:, 1:])
    first, last = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    ranks: Floats = (below[:, first] + below[:, last] + 1) / 2
    return ranks


def _interval(replicates: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
