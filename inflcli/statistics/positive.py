"""A query's positive scores, from one pass over chunks of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inflcli.statistics.tail import FEWEST, SHARE

_STEPS = 64
"""Bins an octave: each spans about one per cent."""
_LOWEST, _HIGHEST = -150, 129
"""Octaves of float32."""


@dataclass
class Positive:
    """Of at most `most` scores the positive ones: counted and summed in bins, the highest kept.

    Memory: 290 kB, and a ten thousandth of the scores.
    """

    most: int
    scanned: int = 0
    _counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((_HIGHEST - _LOWEST) * _STEPS, np.int64)
    )
    _sums: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros((_HIGHEST - _LOWEST) * _STEPS)
    )
    _top: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, scores: NDArray[np.floating]) -> None:
        """Add scores, NaN where nothing was scanned."""
        self.scanned += int((~np.isnan(scores)).sum())
        positive = scores[scores > 0].astype(np.float64)
        bins = np.floor((np.log2(positive) - _LOWEST) * _STEPS).astype(np.int64)
        size = len(self._counts)
        self._counts += np.bincount(bins, minlength=size)
        self._sums += np.bincount(bins, positive, minlength=size)
        # As many as the tail may come to hold.
        self._top = np.sort(np.concatenate([self._top, positive]))[-_tail_of(self.most) :]

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self._sums.sum())

    def tail(self) -> NDArray[np.float64]:
        """The highest 0.01 %, or 50 if these are more, ascending."""
        return self._top[-_tail_of(self.count) :]

    def survival(self) -> list[tuple[float, int]]:
        """Scores, descending, and how many are at least as high: the tail's, then the bins'."""
        tail = self.tail()
        top = [(float(value), rank) for rank, value in enumerate(tail[::-1], 1)]
        above, below = self._counts[::-1].cumsum()[::-1], tail[0] if len(tail) else 0.0
        filled = np.flatnonzero(self._counts)[::-1]
        edges = 2.0 ** (filled / _STEPS + _LOWEST)
        rest = zip(edges.tolist(), above[filled].tolist(), strict=True)
        return top + [(edge, count) for edge, count in rest if edge < below]

    def concentration(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part of the positive influence in the top share of the sequences, by `shares` in
        [0, 1]; NaN where nothing is positive.
        """
        filled = np.flatnonzero(self._counts)[::-1]
        if len(filled) == 0:
            return np.full(len(shares), np.nan)
        counts = np.concatenate([[0], self._counts[filled].cumsum()])
        sums = np.concatenate([[0.0], self._sums[filled].cumsum()])
        return np.interp(shares * self.scanned, counts, sums) / sums[-1]


def _tail_of(positive: int) -> int:
    return max(FEWEST, math.ceil(SHARE * positive))
