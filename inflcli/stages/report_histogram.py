"""A histogram of a query's scores, counted as they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inflcli.report.model import Histogram

_BINS = 60


@dataclass
class Bins:
    """Counts scores in bins of one width, zero being an edge."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    candidates: NDArray[np.int64]
    signs: NDArray[np.int64]

    @classmethod
    def around(cls, top: NDArray[np.float32]) -> Bins | None:
        """Bins over what `top` [2, K], the top scores of both signs, spans; None if nothing."""
        known = top[np.isfinite(top)].astype(np.float64)
        if len(known) == 0:
            return None
        low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
        width = (high - low) / _BINS or 1.0
        first, last = int(np.floor(low / width)), int(np.ceil(high / width))
        edges = np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * width
        zeros = np.zeros(len(edges) - 1, np.int64)
        return cls(edges, zeros, zeros.copy(), np.zeros(2, np.int64))

    def add(self, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> None:
        """Scores [n], NaN where nothing was scanned, and which are candidates of the filter."""
        scanned = ~np.isnan(scores)
        values = scores[scanned].astype(np.float64)
        self.counts += self._count(values)
        self.signs += [(values > 0).sum(), (values < 0).sum()]
        self.candidates += self._count(values[candidates[scanned]])

    def _count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        # Clipped: the ends are float32 scores, and rounding must not push one out of its bin.
        inside = np.clip(values, self.edges[0], self.edges[-1])
        return np.histogram(inside, self.edges)[0].astype(np.int64)

    def histogram(self, filtered: bool) -> Histogram:
        return Histogram(
            self.edges.tolist(),
            self.counts.tolist(),
            self.candidates.tolist() if filtered else None,
            int(self.signs[0]),
            int(self.signs[1]),
        )
